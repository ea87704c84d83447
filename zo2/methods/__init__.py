"""A method: which passes make a step, and how their losses become (seed, coefficient) pairs.

A new method is one file like `zo2.methods.mezo`, in this folder or anywhere else: its class is
made known under its name by `register`. Every module of this folder is imported.
"""

from __future__ import annotations

import importlib
import pkgutil

from zo2.methods.base import Estimate, Method, Perturbation, get_method, register

__all__ = ["Estimate", "Method", "Perturbation", "get_method", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

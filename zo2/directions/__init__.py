"""Random directions z as a pure function of (seed, parameter, element index).

Nothing here has state: any range of any parameter's z can be made alone, on any device, and is
the same bits whatever asks for it. A new family is one file like `zo2.directions.gaussian`, in
this folder or anywhere else, made known by `register`. Every module of this folder is imported.

words      the definition of all randomness: Philox, in torch operations
normals    standard normals from words
compiled   the same bits by numba, on a CPU
gpu        the same bits by Triton, on a GPU
streams    the fastest of these that is at hand
"""

from __future__ import annotations

import importlib
import pkgutil

from zo2.directions.base import Family, ParameterShape, get_family, register

__all__ = ["Family", "ParameterShape", "get_family", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

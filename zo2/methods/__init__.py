"""A method: which passes make a step, and how their losses become (seed, coefficient) pairs.

A new method is one file like `zo2.methods.mezo`, registered under its name with `register`.
"""

from __future__ import annotations

from zo2.methods.base import Estimate, Method, Perturbation, get_method, register
from zo2.methods.fzoo import FZOO
from zo2.methods.mezo import MeZO

__all__ = ["FZOO", "Estimate", "MeZO", "Method", "Perturbation", "get_method", "register"]

"""What torch.compile leaves alone, so that blocks of a model can be compiled.

A pass pauses in the middle of the model's forward, where other passes go on: a graph could not hold
that. The hooks that pause it therefore run as they are, between the graphs of blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def never_compiled(function: Function) -> Function:
    """``function``, which runs as it is wherever compiled code calls it, with all that it calls."""
    kept: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return kept


def compiling_nothing() -> contextlib.AbstractContextManager[Any]:
    """Within, modules that were compiled run as they are (in torch 2.6 and later)."""
    stance: Any = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance else contextlib.nullcontext()

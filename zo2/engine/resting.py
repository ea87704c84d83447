"""Reading a parameter between steps applies what is pending first.

After a step the stored weights may lack its update. While they do, the model's parameters are
of a class that does nothing but notice when a torch function is about to read their values; it
then settles the engine, after which they are ordinary parameters again. Asking for a shape, a
dtype or a device costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from zo2.engine.partition import Unit
from zo2.engine.record import reads_values


class RestingParameter(nn.Parameter):
    """A parameter whose weights lack updates; any read of its values applies them."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_values(func):
            for settle in _find_settlers((*args, *(kwargs or {}).values())):
                settle()
        return super().__torch_function__(func, types, args, kwargs or {})


def _find_settlers(values: Iterable[Any]) -> list[Callable[[], None]]:
    found: list[Callable[[], None]] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _find_settlers(value)
        elif type(value) is RestingParameter:
            found.append(value.__dict__["_zo_settle"])
    return found


def mark_resting(units: Iterable[Unit], settle: Callable[[], None]) -> None:
    """From now on, reading any of the units' parameters calls ``settle`` first."""
    for parameter in _parameters(units):
        if type(parameter) is nn.Parameter:
            parameter.__dict__["_zo_settle"] = settle
            parameter.__class__ = RestingParameter


def unmark(units: Iterable[Unit]) -> None:
    """Make the units' parameters ordinary again."""
    for parameter in _parameters(units):
        if type(parameter) is RestingParameter:
            parameter.__class__ = nn.Parameter  # type: ignore[assignment]
            parameter.__dict__.pop("_zo_settle", None)


def _parameters(units: Iterable[Unit]) -> Iterable[nn.Parameter]:
    return (weight.parameter for unit in units for weight in unit.weights)

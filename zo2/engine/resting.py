"""Reading a parameter between steps applies what is pending first.

After a step the stored weights may lack its update. While they do, the model's parameters are
of a class that does nothing but notice when a torch function is about to read their values; it
then settles the engine, after which they are ordinary parameters again. Asking for a shape, a
dtype or a device costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import nn

from zo2.engine.eager import never_compiled
from zo2.engine.record import reads_values


class RestingParameter(nn.Parameter):
    """A parameter whose weights lack updates; any read of its values applies them."""

    settle: ClassVar[Callable[[], None]]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_values(func):
            for kind in _find_resting((*args, *(kwargs or {}).values())):
                kind.settle()
        return super().__torch_function__(func, types, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """An ordinary parameter, as this one is from then on."""
        type(self).settle()
        copied: nn.Parameter = nn.Parameter.__deepcopy__(self, memo)
        return copied


def _find_resting(values: Iterable[Any]) -> list[type[RestingParameter]]:
    found: list[type[RestingParameter]] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _find_resting(value)
        elif isinstance(value, RestingParameter):
            found.append(type(value))
    return found


class Marks:
    """Marks parameters as resting, all or none.

    Args:
        parameters: ordinary ones; those of other classes are left as they are.
        settle: what applies the updates that they lack, after which they are not marked.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settle: Callable[[], None]) -> None:
        self._parameters = [one for one in parameters if type(one) is nn.Parameter]
        # a class of its own says what settles: a GPU waits while each parameter is marked
        does = {"settle": staticmethod(never_compiled(settle))}
        self._kind: type[nn.Parameter] = type(RestingParameter.__name__, (RestingParameter,), does)
        self._set = False

    def set(self) -> None:
        """From now on, reading any of the parameters settles first."""
        if not self._set:
            self._turn(nn.Parameter, self._kind)
            self._set = True

    def clear(self) -> None:
        """Make the parameters ordinary again."""
        if self._set:
            self._turn(self._kind, nn.Parameter)
            self._set = False

    def _turn(self, old: type[nn.Parameter], new: type[nn.Parameter]) -> None:
        for parameter in self._parameters:
            if type(parameter) is old:
                parameter.__class__ = new  # type: ignore[assignment]

"""Parameters that tell when they are asked for something.

After a step the stored weights may lack its update. While they do, the model's parameters are of
a class that does nothing but tell their engine which torch function is about to be given them. So
updates are applied when values are read; and as long as nothing was asked, the next sweep finds
parameters as the last one has left them and need not look at each, for which a GPU would wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import nn

from zo2.engine.eager import never_compiled
from zo2.engine.partition import Unit


class RestingParameter(nn.Parameter):
    """A parameter at rest. Its engine is told before a torch function is given it, and may make it
    an ordinary one.
    """

    asked: ClassVar[Callable[[Any], None]]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in _find_resting((*args, *(kwargs or {}).values())):
            kind.asked(func)
        return super().__torch_function__(func, types, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """An ordinary parameter, as this one is from then on."""
        type(self).asked(nn.Parameter.__deepcopy__)
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
    """Marks the parameters of units as resting.

    Args:
        units: those that may be marked; the ones with parameters of other classes are not.
        asked: told which torch function is about to be given a marked parameter.
    """

    def __init__(self, units: Iterable[Unit], asked: Callable[[Any], None]) -> None:
        found = {unit: [weight.parameter for weight in unit.weights] for unit in units}
        self._parameters = {
            unit: parameters
            for unit, parameters in found.items()
            if all(type(one) is nn.Parameter for one in parameters)
        }
        self._units = len(found)
        # a class of its own says who is told: a GPU waits while parameters are marked
        does = {"asked": staticmethod(never_compiled(asked))}
        self._kind: type[nn.Parameter] = type(RestingParameter.__name__, (RestingParameter,), does)
        self._set: set[Unit] = set()

    def __contains__(self, unit: Unit) -> bool:
        return unit in self._set

    @property
    def are_complete(self) -> bool:
        """Whether all parameters are marked, so that nobody can have changed any since."""
        return len(self._set) == self._units

    def set(self) -> None:
        """From now on, all that may be marked are."""
        for unit, parameters in self._parameters.items():
            if unit not in self._set:
                self._turn(parameters, nn.Parameter, self._kind)
                self._set.add(unit)

    def clear(self, unit: Unit) -> None:
        """Make a unit's parameters ordinary again."""
        if unit in self._set:
            self._set.remove(unit)
            self._turn(self._parameters[unit], self._kind, nn.Parameter)

    def _turn(
        self, parameters: Iterable[nn.Parameter], old: type[nn.Parameter], new: type[nn.Parameter]
    ) -> None:
        for parameter in parameters:
            if type(parameter) is old:
                parameter.__class__ = new  # type: ignore[assignment]

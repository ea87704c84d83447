"""Which updates the stored weights of which unit lack.

Updates wait in the open until a sweep makes a round of them. A round is applied to weights as one
and rounded once, and from then on every pass sees it. A unit's stored base may lack several rounds
all the same: they are applied one by one, each rounded as if its result had been stored, so when a
unit is written home decides nothing but what is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from zo2.engine.partition import Unit
from zo2.engine.updates import Round, Update
from zo2.engine.weights import Changes
from zo2.methods import Perturbation


@dataclass
class Pending:
    """Updates that not every unit's stored base has yet.

    Attributes:
        open: updates of no round yet, oldest first; no base has them.
        rounds: oldest first.
    """

    open: list[Update] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    _held: dict[Unit, int] = field(default_factory=dict)  # rounds that a unit's base has

    @classmethod
    def of(cls, units: Iterable[Unit], updates: list[Update]) -> Pending:
        """``updates`` wait for ``units``, which are those that updates concern."""
        return cls(list(updates), [], dict.fromkeys(units, 0))

    def __len__(self) -> int:
        return len(self.open) + sum(map(len, self.rounds))

    def copy(self) -> Pending:
        return Pending(list(self.open), list(self.rounds), dict(self._held))

    def changes(self, perturbations: Iterable[Perturbation]) -> Changes:
        """What a sweep with these perturbations does to weights."""
        return Changes(tuple(self.rounds), tuple(self.open), tuple(dict.fromkeys(perturbations)))

    def make_round(self) -> None:
        """Of the open updates, if there are any."""
        if self.open:
            self.rounds.append(tuple(self.open))
            self.open.clear()

    def held(self, unit: Unit) -> int:
        """How many of the rounds a unit's base has."""
        return self._held.get(unit, len(self.rounds))

    def lacks(self, unit: Unit) -> int:
        """How many of the rounds a unit's base lacks."""
        return len(self.rounds) - self.held(unit)

    def wrote(self, unit: Unit) -> None:
        """A unit's base has all rounds now."""
        self._held[unit] = len(self.rounds)

    def forget(self) -> None:
        """Drop the rounds that every unit has."""
        everywhere = min(self._held.values(), default=len(self.rounds))
        del self.rounds[:everywhere]
        for unit in self._held:
            self._held[unit] -= everywhere

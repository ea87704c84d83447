"""The order in which a sweep is expected to need the units, as a recorded pass has met them.

It decides what is fetched ahead and which of several waiting passes goes first, never what is
computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from zo2.engine.partition import Unit
from zo2.engine.placement import tiny_ones


class Route:
    """An order of all units.

    Args:
        units: in the order in which passes enter them.
        never_run: units that no pass enters.

    Attributes:
        order: of all units, those that never run at the end.
        never_run: as given.
        tiny: units that are worth no stop of their own.
        divided: by their first units, the blocks that have several.
    """

    def __init__(self, units: Sequence[Unit], never_run: Sequence[Unit] = ()) -> None:
        self.order, self.never_run = [*units, *never_run], frozenset(never_run)
        self.tiny = tiny_ones(self.order) - self.never_run
        blocks = [tuple(block) for _, block in groupby(units, key=lambda unit: unit.block)]
        self.divided = {
            block[0]: block for block in blocks if len(block) > 1 and block[0].block is not None
        }
        self._position = {unit: index for index, unit in enumerate(self.order)}

    def position(self, unit: Unit) -> int:
        """When ``unit`` is expected, counted from 0."""
        return self._position[unit]

    def after(self, unit: Unit) -> Iterator[Unit]:
        """What comes after ``unit`` in a sweep."""
        return islice(self.order, self._position[unit] + 1, None)

    def until(self, unit: Unit) -> Iterator[Unit]:
        """What comes before ``unit`` in a sweep."""
        return islice(self.order, self._position[unit])

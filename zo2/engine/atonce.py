"""Blocks as passes call them: which are one unit, and which of several are gone through at once.

A stop takes Python's time, for which a GPU waits where blocks are small. So passes wait for all of
a small block before they enter it, if there is room for copies of it. How weights are moved is
another matter: piece by piece, through buffers that may hold less than a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import nn

from zo2.engine.partition import Unit
from zo2.engine.placement import blocks_of, fits_whole
from zo2.engine.route import Route
from zo2.engine.store import Layout

Calls = dict[nn.Module, frozenset[Unit]]  # of blocks, with what has to be bound


def whole_blocks(units: Sequence[Unit]) -> Calls:
    """The blocks that are units."""
    return {module: frozenset([unit]) for unit in units if unit.is_block for module in unit.modules}


def divided_blocks(model: nn.Module, units: Sequence[Unit]) -> Calls:
    """The blocks that consist of several units, and share no weights with others."""
    found = {
        model.get_submodule(block[0].root): frozenset(block)
        for block in blocks_of(units).values()
        if not block[0].is_block
    }
    return {
        module: block
        for module, block in found.items()
        if set(module.parameters()) == {w.parameter for unit in block for w in unit.weights}
    }


@dataclass(frozen=True)
class AtOnce:
    """The divided blocks that passes of a sweep go through at once.

    Attributes:
        first: by the module that is called, the unit that passes enter first.
        blocks: by the first unit, all of a block's units, in the order in which passes enter them.
        units: of all these blocks.
    """

    first: Mapping[nn.Module, Unit]
    blocks: Mapping[Unit, tuple[Unit, ...]]
    units: frozenset[Unit]

    @classmethod
    def of(
        cls,
        divided: Calls,
        route: Route,
        layouts: Mapping[Unit, Layout],
        apart: AbstractSet[Unit],
        copies: int,
        room: int,
    ) -> AtOnce:
        """Choose them.

        Args:
            divided: the blocks that consist of several units.
            route: in which order passes enter these.
            layouts: of all units.
            apart: units with which it is impossible.
            copies: for each of the passes' perturbations one.
            room: bytes for copies.
        """
        blocks = {
            first: block
            for first, block in route.divided.items()
            if fits_whole(block, copies, room)
            and not any(layouts[unit].has_frozen for unit in block)  # which have no copies
            and apart.isdisjoint(block)
        }
        calls = {frozenset(block): first for first, block in blocks.items()}
        first = {module: calls[units] for module, units in divided.items() if units in calls}
        within = frozenset(unit for one in first.values() for unit in blocks[one])
        return cls(first, blocks, within)


NONE = AtOnce({}, {}, frozenset())

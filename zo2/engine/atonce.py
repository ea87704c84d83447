"""Blocks as passes call them: which are one unit, and which of several are gone through at once.

A stop takes Python's time, for which a GPU waits where blocks are small. So passes wait for all of
a small block before they enter it, if there is room for a copy of it. How weights are moved is
another matter: piece by piece, through buffers that may hold less than a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import nn

from zo2.engine.partition import Unit
from zo2.engine.placement import Plan, blocks_of, is_small
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


def any_at_once(
    model: nn.Module, units: Sequence[Unit], copies: float, plan: Plan | None = None
) -> bool:
    """Whether passes go through any block at once, so that this can be replayed.

    Args:
        model: of which.
        units: its partition.
        copies: of a divided block, for each of the passes' perturbations one; infinite if these
            never go through such a block at once.
        plan: where units rest; if it is not made, passes might go through any small block.
    """
    if whole_blocks(units):
        return True
    divided = divided_blocks(model, units).values()
    return copies < math.inf and any(
        (plan.goes_whole(block, copies) if plan else is_small(block))
        and all(weight.trainable for unit in block for weight in unit.weights)
        for block in divided
    )


@dataclass(frozen=True)
class AtOnce:
    """The divided blocks that passes of a sweep go through at once.

    Attributes:
        first: by the module that is called, the unit that passes enter first.
        units: of the blocks that are called.
        starts: first units, also of blocks that passes enter otherwise than by a call; each with
            the bytes of one copy of its block.
    """

    first: Mapping[nn.Module, Unit]
    units: frozenset[Unit]
    starts: Mapping[Unit, int]

    @classmethod
    def of(
        cls,
        divided: Calls,
        route: Route,
        layouts: Mapping[Unit, Layout],
        apart: AbstractSet[Unit],
        outside: AbstractSet[Unit],
        copies: int,
        plan: Plan,
    ) -> AtOnce:
        """Choose them.

        Args:
            divided: the blocks that consist of several units.
            route: in which order passes enter these.
            layouts: of all units.
            apart: units with which it is impossible.
            outside: units that passes enter otherwise than by a call of their block.
            copies: for each of the passes' perturbations one.
            plan: where units rest.
        """
        found = {
            frozenset(block): start
            for start, block in route.divided.items()
            if plan.goes_whole(block, copies)
            and not any(layouts[unit].has_frozen for unit in block)  # which have no copies
            and apart.isdisjoint(block)
        }
        called = {
            module: units
            for module, units in divided.items()
            if units in found and outside.isdisjoint(units)
        }
        first = {module: found[units] for module, units in called.items()}
        starts = {
            start: sum(layouts[unit].nbytes for unit in block) for block, start in found.items()
        }
        return cls(first, frozenset().union(*called.values()), starts)


NONE = AtOnce({}, frozenset(), {})

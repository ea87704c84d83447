"""Which units rest on the working device, which are streamed, and what moves in one copy.

Device memory goes to the CUDA context, activations, perturbed copies, the buffers that units are
streamed through, and what cannot be streamed; what a budget leaves after these holds resident
units, spread evenly over the sweep. Embeddings and head rest in host memory only where a budget
has too little room beside them: a GPU reads their rows there, so they pass through no buffer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, product
from typing import NamedTuple

import torch
from torch import nn

from zo2.engine.lanes import CudaLanes, HostLanes
from zo2.engine.partition import Unit, partition
from zo2.engine.store import Store
from zo2.engine.transfer import InPlace, Slots, Transfer
from zo2.engine.vocabulary import part_of, servable
from zo2.errors import ConfigError, DeviceMemoryError

# Bytes of a budget that are left for what torch's allocator cannot use (gaps between activations)
# or may not (`zo2.engine.devicememory.LATER`).
SLACK, MOST_SLACK = 40_000_000, 110_000_000
SMALL_BLOCK = 1 << 28  # bytes: passes through it take a GPU hardly longer than Python
# Between the last update of one sweep and the first of the next, the link has no more to do than
# what the buffers hold, and a slow host takes some 10 ms: so many bytes keep it busy both ways.
IN_FLIGHT = 800_000_000
# Within a budget a resident parcel spares the link as much as one more buffer could, so these
# should just cover what a fast host takes.
IN_FLIGHT_WITHIN_BUDGET = 450_000_000
# Buffers: by default at least as many, and within a budget at least two, with which a parcel's way
# home holds up the way there of the one after next.
FEWEST, MOST = 3, 8
TINY = 1 / 128  # of the largest unit of the blocks
MOST_SMALL = 1 << 24  # bytes of tiny units that are perturbed together


@dataclass(frozen=True)
class Parcel:
    """Units that rest side by side and are moved by one copy.

    Attributes:
        units: in the model's order.
        streamed: whether they rest in host memory.
        by_rows: whether they are a matrix that is perturbed by rows, which kernels read where they
            rest.
    """

    units: tuple[Unit, ...]
    streamed: bool
    by_rows: bool = False

    @cached_property
    def nbytes(self) -> int:
        """Size of their buffer."""
        return sum(unit.stored for unit in self.units)

    @property
    def copied(self) -> bool:
        """Whether it passes through buffers."""
        return self.streamed and not self.by_rows


@dataclass(frozen=True)
class Need:
    """Bytes of the working device's memory, by what they are for."""

    context: int
    activations: int
    perturbed: int
    slots: int
    resident: int
    slack: int = 0

    @property
    def total(self) -> int:
        used = self.context + self.activations + self.perturbed + self.slots + self.resident
        return used + self.slack

    def itemised(self) -> str:
        """What it is made up of, in gigabytes."""
        parts = {
            "CUDA context and other tensors": self.context,
            "activations": self.activations,
            "perturbed copies": self.perturbed,
            "buffers": self.slots,
            "resident weights": self.resident,
            "slack": self.slack,
        }
        return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())


@dataclass(frozen=True)
class Plan:
    """Where every unit rests, through what the streamed ones pass, and the memory for it all.

    Attributes:
        parcels: all units, as they are moved.
        slots: number of device buffers that streamed parcels share; 0 if they are used in place.
        need: device memory.
        small: units that are perturbed together.
    """

    parcels: tuple[Parcel, ...]
    slots: int
    need: Need
    small: tuple[Unit, ...] = ()

    @property
    def room(self) -> int:
        """Bytes for perturbed copies of all other units."""
        return self.need.perturbed - copies_of(self.small)

    def goes_whole(self, block: Collection[Unit], copies: float) -> bool:
        """Whether passes can go through all of a block at once.

        It is small, and there is room for a copy of it for each of the passes' perturbations; or
        for one, and buffers to keep it in while these take turns.

        Args:
            block: its units.
            copies: how many perturbations there are.
        """
        if not is_small(block):
            return False
        number, size = next(iter(block)).block, sum(unit.stored for unit in block)
        kept = not self.slots or self._moved[number] <= self.slots
        return size * (1 if kept else copies) <= self.room

    @cached_property
    def _moved(self) -> Counter[int | None]:
        return moved_by_block(self.parcels)

    @property
    def streamed(self) -> set[Unit]:
        """What rests in host memory."""
        return {unit for one in self.parcels if one.streamed for unit in one.units}

    @property
    def copied(self) -> set[Unit]:
        """What of it passes through buffers."""
        return {unit for one in self.parcels if one.copied for unit in one.units}

    @property
    def by_rows(self) -> set[Unit]:
        """What of it kernels read where it rests, by rows."""
        return self.streamed - self.copied

    @property
    def streamed_nbytes(self) -> int:
        """Bytes of what rests in host memory."""
        return sum(one.nbytes for one in self.parcels if one.streamed)

    def following(self, store: Store) -> Plan:
        """The plan with every parcel where it rests in ``store``."""
        parcels = [
            replace(one, streamed=store.resting[one.units[0]].streamed) for one in self.parcels
        ]
        return replace(self, parcels=tuple(parcels))

    def transfer(self, store: Store, device: torch.device) -> Transfer:
        """What brings streamed units to ``device``, apart from those that are read by rows."""
        if not self.copied or not self.slots:
            return InPlace(store)
        lanes = CudaLanes(device) if device.type == "cuda" else HostLanes()
        return Slots(store, self.copied, self.slots, device, lanes)


NOTHING = Plan((), 0, Need(context=0, activations=0, perturbed=0, slots=0, resident=0))


@dataclass(frozen=True)
class Placement:
    """A choice of streamed units.

    Attributes:
        blocks: indices of the decoder blocks that are streamed; ``None`` for all.
        outside: stream also what lies outside the blocks (embeddings, final norm, head). A budget
            that has no room for these beside `FEWEST` buffers, and that names no blocks, streams
            them anyway.
        slots: number of device buffers that streamed parcels share; ``None`` for as many as hold
            `IN_FLIGHT` (`IN_FLIGHT_WITHIN_BUDGET`), from `FEWEST` to `MOST`.
        copies: stream through buffers even where the working device is the CPU, whose weights
            passes could use where they rest.
        budget: bytes of device memory for everything; keeps as much resident as fits.
        write_back_every: sweeps from one way home of updated weights to the next; ``None`` adapts
            it to what computation waits for.
    """

    blocks: frozenset[int] | None = None
    outside: bool = False
    slots: int | None = None
    copies: bool = False
    budget: int | None = None
    write_back_every: int | None = None

    def plan(
        self,
        units: Sequence[Unit],
        device: str,
        context: int = 0,
        activations: int = 0,
        spared: AbstractSet[Unit] = frozenset(),
    ) -> Plan:
        """Decide for a model.

        Args:
            units: the partition of the model.
            device: ``"cuda"`` or ``"cpu"``.
            context: bytes that the device's libraries take.
            activations: bytes that passes need beside weights.
            spared: units that are perturbed by rows and need no copy of all of them.

        Raises:
            ConfigError: a block is named that does not exist.
            DeviceMemoryError: the budget is too small for this model.
        """
        small = small_ones(units) if device == "cuda" else ()
        parcels = _bundle(units, self._movable(units, self.outside), small, spared)
        slots = self._depth(parcels) if device == "cuda" or self.copies else 0

        def rooms(parcels: Iterable[Parcel]) -> Rooms:
            by_rows = (one for one in parcels if one.by_rows)
            served = {u for one in by_rows for u in one.units if u.trainable or one.streamed}
            return perturbed_sizes(units, device, served)

        def plan(parcels: Sequence[Parcel], slots: int, room: int) -> Plan:
            largest = max((one.nbytes for one in parcels if one.copied), default=0)
            slots = min(slots, sum(one.copied for one in parcels))
            resident = sum(one.nbytes for one in parcels if not one.streamed)
            slack = min(max(activations // 4, SLACK), MOST_SLACK) if device == "cuda" else 0
            need = Need(context, activations, room, slots * largest, resident, slack)
            return Plan(tuple(parcels), slots, need, small)

        if self.budget is None:
            return plan(parcels, slots, rooms(parcels).whole)
        resident = [replace(one, streamed=False) for one in parcels]
        everything = plan(resident, slots, rooms(resident).whole)
        if everything.need.total <= self.budget:
            return everything
        choices = [parcels]
        if self.blocks is None and not self.outside:
            choices.append(_bundle(units, self._movable(units, outside=True), small, spared))
        moved = moved_by_block(parcels)
        blocks = [number for number, block in blocks_of(units).items() if is_small(block)]
        most = max((moved[number] for number in blocks), default=0)
        ways = [(choice, _by_preference(rooms(choice), slots, most)) for choice in choices]
        needs = []
        for hurts, (choice, pairs) in product(HURTS, ways):
            for room, depth in pairs.get(hurts, ()):
                least = plan(choice, depth, room).need
                if least.total <= self.budget:
                    return plan(_keep(choice, self.budget - least.total), depth, room)
                needs.append(least)
        least = min(needs, key=lambda need: need.total)
        leaf = ", set unit='leaf'" if any(unit.is_block for unit in units) else ""
        raise DeviceMemoryError(
            f"device_memory_budget is {self.budget / 1e9:.2f} GB, but this model and batch need "
            f"{math.ceil(least.total / 1e7) / 100:.2f} GB with everything streamed "
            f"({least.itemised()}). "
            f"Raise the budget{leaf}, or use smaller micro-batches."
        )

    def _depth(self, parcels: Sequence[Parcel]) -> int:
        """The number of buffers, where there are any."""
        if self.slots is not None:
            return self.slots
        in_flight = IN_FLIGHT if self.budget is None else IN_FLIGHT_WITHIN_BUDGET
        largest = max((one.nbytes for one in parcels if one.copied), default=1)
        return min(max(-(-in_flight // largest), FEWEST), MOST)

    def _movable(self, units: Sequence[Unit], outside: bool) -> set[Unit]:
        """The units that may be streamed, those outside the blocks among them or not."""
        count = 1 + max((unit.block for unit in units if unit.block is not None), default=-1)
        unknown = sorted(b for b in self.blocks or () if not 0 <= b < count)
        if unknown:
            raise ConfigError(
                f"offloading_blocks names block {unknown[0]}, but the model has {count} blocks, "
                f"0 to {count - 1}."
            )
        tiny = tiny_ones(units)
        return {
            unit
            for unit in units
            if not unit.held
            and unit not in tiny
            and (
                outside if unit.block is None else self.blocks is None or unit.block in self.blocks
            )
        }


def unit_sizes_to_try(model: nn.Module, placement: Placement) -> list[str]:
    """Sizes of units that suit a placement, the better first.

    Leaves take less device memory; each costs host time, which a block of some hundred megabytes
    hides and a small one does not.
    """
    if placement.budget is None:
        return ["block"]
    return ["leaf"] if _largest(partition(model, "block")) > SMALL_BLOCK else ["block", "leaf"]


def tiny_ones(units: Sequence[Unit]) -> set[Unit]:
    """Units, such as norms, that are worth neither a copy nor a stop of their own."""
    limit = TINY * _largest(units)
    return {unit for unit in units if not unit.held and unit.stored < limit}


def small_ones(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Tiny units that a GPU perturbs together, by one kernel, since each takes Python time."""
    tiny = tiny_ones(units)
    trained = [u for u in units if u in tiny and all(one.trainable for one in u.weights)]
    fits = sum(unit.stored for unit in trained) <= MOST_SMALL
    return tuple(trained) if fits else ()


def spared(units: Sequence[Unit], head: nn.Module | None) -> set[Unit]:
    """Units of which passes need rows, not perturbed copies; ``head`` is the model's, if it can be
    asked for these. Tiny units are perturbed together.
    """
    return servable(units, head) - tiny_ones(units)


def copies_of(small: Iterable[Unit]) -> int:
    """Bytes of small units' perturbed copies, two of each."""
    return 2 * sum(unit.stored for unit in small)


def _largest(units: Iterable[Unit]) -> int:
    """Bytes of the largest unit of the blocks."""
    return max((unit.stored for unit in units if unit.block is not None), default=0)


def blocks_of(units: Iterable[Unit]) -> dict[int, list[Unit]]:
    """The units of each block."""
    blocks: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.block is not None:
            blocks.setdefault(unit.block, []).append(unit)
    return blocks


def is_small(block: Iterable[Unit]) -> bool:
    """Whether the units of one block are worth no stops of their own, if there is another way."""
    return sum(unit.stored for unit in block) <= SMALL_BLOCK


class Rooms(NamedTuple):
    """Bytes that the buffer for perturbed copies may have.

    Each holds the largest unit, or the part of it that is needed at once, and what else is said
    here, with a tiny unit beside it; two copies of small ones come on top.

    Attributes:
        whole: two copies of any unit of the blocks, so that one generation of z serves the passes
            on both sides, and of any small block, whatever units that has.
        once: one copy of any small block, two of any unit of other blocks.
        double: two copies of any unit of the blocks.
        single: one.
    """

    whole: int
    once: int
    double: int
    single: int


# Whether passes stop within small blocks, or use one copy of a large one's parts at a time; and
# whether there are fewer buffers than `FEWEST`.
HURTS = ((False, False), (False, True), (True, False), (True, True))


def _by_preference(
    rooms: Rooms, slots: int, parcels: int
) -> dict[tuple[bool, bool], list[tuple[int, int]]]:
    """Bytes for copies and numbers of buffers, the better first.

    A second copy of blocks spares the GPU some work, and more buffers spare the link some waiting
    between sweeps, which is worth more. Stops within blocks cost most, as long as there are more
    buffers than the ``parcels`` that a block has and that are kept until all passes are through.

    Returns:
        By what hurts, one of `HURTS`: it is better to move embeddings and head to host memory than
        to take what hurts more, since that takes the link less time than it loses then.
    """
    depths = range(slots, min(slots, 2) - 1, -1)
    pairs = [(rooms.whole, slots)]
    pairs += [(rooms.once, depth) for depth in depths if depth > parcels]
    pairs += product((rooms.whole, rooms.double, rooms.single), depths)

    def hurts(pair: tuple[int, int]) -> tuple[bool, bool]:
        room, depth = pair
        return room < rooms.once, depth < min(slots, FEWEST)

    return {key: list(group) for key, group in groupby(sorted(pairs, key=hurts), hurts)}


def moved_by_block(parcels: Iterable[Parcel]) -> Counter[int | None]:
    """Of how many parcels that pass through buffers each block consists."""
    return Counter(one.units[0].block for one in parcels if one.copied)


def perturbed_sizes(
    units: Sequence[Unit], device: str, spared: AbstractSet[Unit] = frozenset()
) -> Rooms:
    """Bytes of the buffer for perturbed copies; of units that are ``spared`` only a part is made.

    Without a GPU, which one generation of z would spare work, there is room for the largest unit.
    """
    kept = (unit for unit in units if not unit.held)
    one = max((part_of(u) if u in spared else u.trained for u in kept), default=0)
    tiny = max((unit.trained for unit in tiny_ones(units)), default=0)
    blocks = blocks_of(units).values()
    largest = max((unit.trained for block in blocks for unit in block), default=0)
    single = max(one, largest + tiny)
    if device != "cuda":
        return Rooms(single, single, single, single)
    double = max(one, 2 * (largest + tiny))
    small = max((sum(u.trained for u in block) for block in blocks if is_small(block)), default=0)
    large = (unit for block in blocks if not is_small(block) for unit in block)
    others = max((unit.trained for unit in large), default=0)
    whole = max(double, 2 * (small + tiny))
    once = max(one, small + tiny, 2 * (others + tiny))
    copies = copies_of(small_ones(units))
    return Rooms(*[size + copies for size in (whole, once, double, single)])


def _keep(parcels: Sequence[Parcel], room: int) -> list[Parcel]:
    """As many of the streamed parcels resident as fit into ``room``."""
    streamed = [index for index, one in enumerate(parcels) if one.streamed]
    stay = spread([parcels[index].nbytes for index in streamed], room)
    kept = {streamed[index] for index in stay}
    return [
        replace(one, streamed=one.streamed and index not in kept)
        for index, one in enumerate(parcels)
    ]


def spread(sizes: Sequence[int], budget: int) -> set[int]:
    """Choose which of several parts stay on the device, evenly among those that are streamed.

    Uploads then happen throughout a sweep; residents in one run would leave the link idle.

    Args:
        sizes: bytes of each part, in execution order.
        budget: bytes that may stay.

    Returns:
        Indices of the parts that stay: their number is the largest for which the evenly spread
        choice fits the budget.
    """
    for count in range(len(sizes), 0, -1):
        chosen = {(2 * i + 1) * len(sizes) // (2 * count) for i in range(count)}
        if sum(sizes[index] for index in chosen) <= budget:
            return chosen
    return set()


def _bundle(
    units: Sequence[Unit], movable: set[Unit], small: Sequence[Unit], by_rows: AbstractSet[Unit]
) -> list[Parcel]:
    """Neighbours of one block in one parcel, as long as it is hardly larger than a block's largest
    unit; and all small ones in one.

    Small copies lose time to the gap before each; a parcel costs hardly more device memory than
    the largest unit does anyway.
    """
    limit = 1.05 * _largest(movable)
    bundles: list[list[Unit]] = [list(small)] if small else []
    apart = set(small)
    for unit in units:
        if unit in apart:
            continue
        last = bundles[-1] if bundles else []
        together = (
            last
            and unit in movable
            and last[-1] in movable
            and unit.block is not None
            and unit.block == last[-1].block
            and sum(one.stored for one in [*last, unit]) <= limit
        )
        if together:
            last.append(unit)
        else:
            bundles.append([unit])
    return [Parcel(tuple(one), one[0] in movable, one[0] in by_rows) for one in bundles]

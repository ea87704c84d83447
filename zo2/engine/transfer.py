"""Bringing units to the working device and back.

`InPlace` serves units that already are where passes run: those resident on the device and, when
the CPU is the working device, all of them. `InHost` lets a GPU use units where they rest in host
memory: matrices of which it needs some rows at a time. `Slots` streams: a fixed pool of device
buffers is filled ahead of the sweep, and updated weights go back while passes still compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch

from zo2.engine import zerocopy
from zo2.engine.lanes import Event, Lanes, Waits
from zo2.engine.partition import Unit
from zo2.engine.store import Resting, Store
from zo2.errors import HostMemoryError

# Bytes of a copy home: what a model asks the device for waits for one or two of them (2 ms each).
PIECE = 100_000_000


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a matrix that rests in host memory: brought to be read, never to be
    written.

    Attributes:
        unit: which has no other weights.
        rows: the first, and the one after the last.
        bytes: these, in the unit's buffer.
    """

    unit: Unit
    rows: tuple[int, int]
    bytes: tuple[int, int]


class Transfer(Protocol):
    """How a sweep gets at a unit's weights, or at a part of a matrix, on the working device."""

    def acquire(self, unit: Unit | Part) -> torch.Tensor:
        """Its flat buffer on the working device, ready for work queued from now on."""
        ...

    def written(self, unit: Unit) -> None:
        """The acquired weights were updated by work queued so far: bring them home."""
        ...

    def release(self, unit: Unit | Part) -> None:
        """No work queued from now on uses the acquired weights: the sweep is past this unit."""
        ...

    def fetched(self) -> Sequence[Sequence[Unit]]:
        """What was fetched ahead and no pass has reached, the units of one copy together."""
        ...

    def has_arrived(self, unit: Unit) -> bool:
        """Whether a unit that the sweep is yet to reach is on the device, ready for use."""
        ...

    def put_back(self, unit: Unit) -> None:
        """As `release`, for a unit that no pass has reached."""
        ...

    def prefetch(self, units: Iterable[Unit | Part]) -> None:
        """These will be acquired next, in this order."""
        ...

    def forget_parts(self) -> None:
        """Parts are fetched anew from now on, as work queued so far leaves them."""
        ...

    never_run: AbstractSet[Unit]  # units that no sweep is expected to reach

    @property
    def buffers(self) -> Sequence[torch.Tensor]:
        """Device memory that units pass through."""
        ...

    def finish(self) -> None:
        """Forget what was fetched ahead; on return the resting buffers are up to date."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing is fetched ahead or on its way home."""
        ...

    def waits(self) -> Waits | None:
        """As `zo2.engine.lanes.Lanes.waits`."""
        ...


class InPlace:
    """Units whose resting buffer is on the working device."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.never_run: AbstractSet[Unit] = frozenset()

    def acquire(self, unit: Unit | Part) -> torch.Tensor:
        if isinstance(unit, Part):
            return self.acquire(unit.unit)[slice(*unit.bytes)]
        return self._store.flats[unit]

    def written(self, unit: Unit) -> None:
        pass

    def release(self, unit: Unit | Part) -> None:
        pass

    put_back = release

    def fetched(self) -> Sequence[Sequence[Unit]]:
        return ()

    def has_arrived(self, unit: Unit) -> bool:
        return True

    def prefetch(self, units: Iterable[Unit | Part]) -> None:
        pass

    def forget_parts(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def waits(self) -> Waits | None:
        return None

    @property
    def is_idle(self) -> bool:
        return True

    buffers: Sequence[torch.Tensor] = ()


class InHost(InPlace):
    """Units that a GPU's kernels read and write where they rest, in page-locked host memory.

    Args:
        store: the resting buffers.
        device: the working device.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        super().__init__(store)
        self._device = device
        self._seen: dict[int, torch.Tensor] = {}  # resting buffers as the device knows them
        self._writes: Event = None  # the end of the last one

    def acquire(self, unit: Unit | Part) -> torch.Tensor:
        flat = super().acquire(unit)
        if isinstance(unit, Part) or flat.device == self._device:
            return flat
        address = flat.data_ptr()
        if address not in self._seen:
            seen = zerocopy.mapped(flat, self._device)
            if seen is None:
                raise HostMemoryError(
                    "The driver gives kernels no access to page-locked host memory. Keep "
                    "embeddings and head on the GPU: without offload_embeddings, and with a larger "
                    "device_memory_budget if there is one."
                )
            self._seen[address] = seen
        return self._seen[address]

    def written(self, unit: Unit) -> None:
        if self._device.type == "cuda":
            self._writes = torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        if self._writes is not None:
            self._writes.synchronize()
            self._writes = None

    @property
    def is_idle(self) -> bool:
        return self._writes is None or bool(self._writes.query())


@dataclass(eq=False)
class _Slot:
    buffer: torch.Tensor
    parcel: Resting | None = None
    acquired: bool = False
    to_come: set[Unit | Part] = field(default_factory=set)  # what the sweep has yet to reach
    reached: bool = False  # whether it has reached any
    ready: Event = None
    used: Event = None  # end of the computation that uses the buffer
    # what of the buffer goes home until when, by where it begins; what goes home last comes last
    saving: dict[int, tuple[slice, Event]] = field(default_factory=dict)
    stale: set[Unit] = field(default_factory=set)  # to be updated, and not updated here yet
    unsaved: set[Unit] = field(default_factory=set)  # updated here, and not on their way home


class Slots:
    """A pool of equal device buffers that streamed parcels pass through.

    What is fetched ahead stays from one sweep to the next, so that a sweep finds its first
    parcels on the device; `finish` forgets it. A parcel is not given up for one that comes later
    before the sweep has reached all of its units, apart from those that never run.

    Args:
        store: the resting buffers.
        streamed: the units that pass through; the largest parcel sets the buffers' size.
        depth: number of buffers; with more than one, copies overlap computation.
        device: the working device.
        lanes: what copies.
    """

    def __init__(
        self, store: Store, streamed: set[Unit], depth: int, device: torch.device, lanes: Lanes
    ) -> None:
        self._store, self._lanes = store, lanes
        parcels = {store.resting[unit] for unit in streamed}
        size = max(parcel.nbytes for parcel in parcels)
        depth = min(depth, len(parcels))
        self._slots = [
            _Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(depth)
        ]
        self._holding: dict[Resting, _Slot] = {}
        # end of the last write-back of a parcel that has not been fetched since
        self._home: dict[Resting, Event] = {}
        # with two buffers the way up waits for each way home: this begins unit by unit, and what is
        # home by one copy is filled by one
        self._in_parts = depth <= 2
        self._parts: dict[Part, Resting] = {}
        self._changed: Event = None  # end of what may have changed matrices where they rest
        self.never_run: AbstractSet[Unit] = frozenset()

    def acquire(self, unit: Unit | Part) -> torch.Tensor:
        parcel = self._parcel(unit)
        slot = self._holding.get(parcel) or self._load(unit, self._reclaim())
        slot.acquired = True
        if slot.ready is not None:
            self._lanes.compute_after(slot.ready)
        return slot.buffer[slice(parcel.nbytes) if isinstance(unit, Part) else parcel.bounds[unit]]

    def written(self, unit: Unit) -> None:
        parcel = self._store.resting[unit]
        slot = self._holding[parcel]
        slot.stale.discard(unit)
        slot.unsaved.add(unit)
        if self._in_parts or not slot.stale:
            self._save(slot)

    def release(self, unit: Unit | Part) -> None:
        self.put_back(unit)
        slot = self._holding[self._parcel(unit)]
        slot.to_come.discard(unit)
        slot.reached = True

    def fetched(self) -> Sequence[Sequence[Unit]]:
        ahead = [s for s in self._slots if s.to_come and not s.reached and not s.acquired]
        return [tuple(one for one in s.to_come if isinstance(one, Unit)) for s in ahead]

    def has_arrived(self, unit: Unit) -> bool:
        slot = self._holding.get(self._store.resting[unit])
        return bool(slot and unit in slot.to_come and self._lanes.has_happened(slot.ready))

    def put_back(self, unit: Unit | Part) -> None:
        slot = self._holding[self._parcel(unit)]
        slot.acquired = False
        slot.used = self._lanes.computed()

    def forget_parts(self) -> None:
        self._changed = self._lanes.computed()
        for parcel in self._parts.values():
            if (slot := self._holding.pop(parcel, None)) is not None:
                slot.used = self._changed if slot.acquired else slot.used
                slot.parcel, slot.to_come, slot.acquired = None, set(), False
        self._parts.clear()

    def prefetch(self, units: Iterable[Unit | Part]) -> None:
        for unit in units:
            parcel = self._parcel(unit)
            if parcel in self._holding:
                continue
            slot = self._idle()
            if slot is None:
                return
            self._load(unit, slot)

    def finish(self) -> None:
        for slot in self._slots:
            if slot.unsaved:
                self._save(slot)
        self._lanes.synchronize()
        for slot in self._slots:
            slot.parcel, slot.to_come = None, set()
            slot.acquired = False
            slot.ready = slot.used = None
            slot.saving = {}
        self._holding.clear()
        self._home.clear()

    @property
    def is_idle(self) -> bool:
        return not self._holding

    def waits(self) -> Waits | None:
        return self._lanes.waits()

    @property
    def buffers(self) -> Sequence[torch.Tensor]:
        return [slot.buffer for slot in self._slots]

    def _parcel(self, unit: Unit | Part) -> Resting:
        if not isinstance(unit, Part):
            return self._store.resting[unit]
        if unit not in self._parts:
            flat = self._store.flats[unit.unit][slice(*unit.bytes)]
            self._parts[unit] = Resting({}, True, flat)
        return self._parts[unit]

    def _idle(self) -> _Slot | None:
        """A slot whose parcel has been used, the longest ago."""
        for slot in self._slots:
            if not slot.acquired and not slot.to_come:
                self._slots.remove(slot)
                self._slots.append(slot)
                return slot
        return None

    def _reclaim(self) -> _Slot:
        """A slot for a parcel that was not foreseen: an idle one, else the last fetched ahead."""
        slot = self._idle()
        if slot is None:
            slot = next(s for s in reversed(self._slots) if not s.acquired)
        return slot

    def _load(self, unit: Unit | Part, slot: _Slot) -> _Slot:
        parcel = self._parcel(unit)
        if slot.parcel is not None:
            if slot.unsaved:
                self._save(slot)
            del self._holding[slot.parcel]
        saving = slot.saving.values()
        pieces = [piece for piece, _ in saving] if self._in_parts else []
        changed = self._changed if isinstance(unit, Part) else None
        after = [slot.used, self._home.pop(parcel, None), changed]
        for part in _cut(slice(0, parcel.nbytes), pieces):
            after += [done for piece, done in saving if _overlap(piece, part)][-1:]
            events = [event for event in after if event is not None]
            slot.ready = self._lanes.upload(slot.buffer[part], parcel.flat[part], events)
            after = []  # later copies up, of whatever parcel, come after this one
        beyond = {at: one for at, one in slot.saving.items() if at >= parcel.nbytes}
        slot.parcel, slot.used, slot.saving = parcel, None, beyond
        expected = parcel.bounds.keys() - self.never_run
        slot.to_come, slot.reached = {unit} if isinstance(unit, Part) else {*expected}, False
        slot.stale = self._trained(parcel)
        self._holding[parcel] = slot
        return slot

    def _save(self, slot: _Slot) -> None:
        """Bring what was trained of a parcel home, after the computation queued so far."""
        parcel = slot.parcel
        assert parcel is not None
        computed = self._lanes.computed()
        after = [] if computed is None else [computed]
        parts = _joined(
            slice(bounds.start, bounds.start + self._store.layouts[unit].trained)
            for unit, bounds in parcel.bounds.items()
            if unit in slot.unsaved
        )
        for piece in (piece for part in parts for piece in _pieces(part, PIECE)):
            done = self._lanes.write_back(parcel.flat[piece], slot.buffer[piece], after)
            self._home[parcel] = done
            slot.saving.pop(piece.start, None)
            slot.saving[piece.start] = piece, done
        slot.unsaved = set()
        slot.stale = slot.stale or self._trained(parcel)

    def _trained(self, parcel: Resting) -> set[Unit]:
        return {unit for unit in parcel.bounds if self._store.layouts[unit].trained}


def _pieces(part: slice, about: int) -> list[slice]:
    """Equal ones of ``about`` so many bytes, each but the last a multiple of a page."""
    return equal_parts(part, max(round((part.stop - part.start) / about), 1), 4096)


def equal_parts(whole: slice, count: int, grain: int) -> list[slice]:
    """``count`` parts, or fewer, each but the last a multiple of ``grain``."""
    step = -(-(whole.stop - whole.start) // count // grain) * grain
    return [slice(at, min(at + step, whole.stop)) for at in range(whole.start, whole.stop, step)]


def _cut(whole: slice, pieces: Iterable[slice]) -> list[slice]:
    """Parts of ``whole`` (from 0), each of which every piece holds altogether or not at all."""
    edges = {edge for piece in pieces for edge in (piece.start, piece.stop) if edge < whole.stop}
    return [slice(*ends) for ends in pairwise(sorted(edges | {0, whole.stop}))]


def _overlap(one: slice, other: slice) -> bool:
    return bool(one.start < other.stop and other.start < one.stop)


def _joined(parts: Iterable[slice]) -> list[slice]:
    """Ascending parts as few runs."""
    runs: list[slice] = []
    for part in parts:
        start = runs.pop().start if runs and runs[-1].stop == part.start else part.start
        if start < part.stop:
            runs.append(slice(start, part.stop))
    return runs

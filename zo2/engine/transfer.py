"""Bringing units to the working device and back.

`InPlace` serves units that already are where passes run: those resident on the device and, when
the CPU is the working device, all of them. `Slots` streams: a fixed pool of device buffers is
filled ahead of the sweep, and updated weights go back while passes still compute. All ordering
is by events; nothing waits on the host inside a sweep, nor between two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch

from zo2.engine.partition import Unit
from zo2.engine.store import Resting, Store

# Bytes of a copy home: what a model asks the device for waits for one or two of them (2 ms each).
# Passes that have not begun should hardly wait, but pieces finer than half a millisecond take too
# long to queue.
PIECE, PIECE_BEFORE_PASSES = 100_000_000, 25_000_000
Event = Any  # torch.cuda.Event, or None where copies are synchronous


class Transfer(Protocol):
    """How a sweep gets at a unit's weights on the working device."""

    def acquire(self, unit: Unit) -> torch.Tensor:
        """The unit's flat buffer on the working device, ready for work queued from now on."""
        ...

    def written(self, unit: Unit) -> None:
        """The acquired weights were updated by work queued so far: bring them home."""
        ...

    def release(self, unit: Unit) -> None:
        """No work queued from now on uses the acquired weights: the sweep is past this unit."""
        ...

    def fetched(self) -> Sequence[Sequence[Unit]]:
        """What was fetched ahead and no pass has reached, the units of one copy together."""
        ...

    def has_arrived(self, unit: Unit) -> bool:
        """Whether a unit that the sweep is yet to reach is on the device, ready for use."""
        ...

    def borrow(self, unit: Unit) -> torch.Tensor:
        """As `acquire`, for a unit that was fetched ahead and that no pass has reached.

        It will go home in small pieces: what passes ask the device for meanwhile gets in between.
        """
        ...

    def put_back(self, unit: Unit) -> None:
        """As `release`, for a unit that no pass has reached."""
        ...

    def prefetch(self, units: Iterable[Unit]) -> None:
        """These units will be acquired next, in this order."""
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

    def waited(self) -> float | None:
        """For what share of the time the computation of the sweep before the one that has just been
        queued waited for copies; ``None`` if it is not known.
        """
        ...


class InPlace:
    """Units whose resting buffer is on the working device."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.never_run: AbstractSet[Unit] = frozenset()

    def acquire(self, unit: Unit) -> torch.Tensor:
        return self._store.flats[unit]

    borrow = acquire

    def written(self, unit: Unit) -> None:
        pass

    def release(self, unit: Unit) -> None:
        pass

    put_back = release

    def fetched(self) -> Sequence[Sequence[Unit]]:
        return ()

    def has_arrived(self, unit: Unit) -> bool:
        return True

    def prefetch(self, units: Iterable[Unit]) -> None:
        pass

    def finish(self) -> None:
        pass

    def waited(self) -> float | None:
        return None

    is_idle = True
    buffers: Sequence[torch.Tensor] = ()


class Lanes(Protocol):
    """Copies in two directions beside the computation, in each direction one after another."""

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event: ...

    def write_back(
        self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]
    ) -> Event: ...

    def computed(self) -> Event:
        """An event at the end of the computation queued so far."""
        ...

    def compute_after(self, event: Event) -> None:
        """Let computation queued from now on wait for ``event``, the end of an upload."""
        ...

    def waited(self) -> float | None:
        """As `Transfer.waited`."""
        ...

    def has_happened(self, event: Event) -> bool:
        """Whether nothing would wait for ``event`` any more."""
        ...

    def synchronize(self) -> None: ...


class HostLanes:
    """Synchronous copies, for a CPU as the working device."""

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        to.copy_(source)

    write_back = upload

    def computed(self) -> Event:
        return None

    def compute_after(self, event: Event) -> None:
        pass

    def waited(self) -> float | None:
        return None

    def has_happened(self, event: Event) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Way:
    """Copies in one direction, one after another on two streams in turn.

    A copy engine takes all copies that are queued on one stream before any other of the same
    direction: a mask that a model reads would wait 10 ms for six parcels of 100 MB on their way
    home, and a batch for those on their way up. Where each copy waits for the one before it on
    another stream, others get in between.

    Attributes:
        stream: where the next copy goes.
        last: the end of the last one.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, self._other = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.last: Event = None

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        with torch.cuda.stream(self.stream):
            for event in (*after, self.last):
                if event is not None:
                    self.stream.wait_event(event)
            to.copy_(source, non_blocking=True)
            self.last = torch.cuda.Event(enable_timing=True)
            self.last.record(self.stream)
        self.stream, self._other = self._other, self.stream
        return self.last

    def synchronize(self) -> None:
        if self.last is not None:
            self.last.synchronize()


class CudaLanes:
    """Copies beside the stream that computes."""

    def __init__(self, device: torch.device) -> None:
        self._index = device.index  # torch looks up the stream of a number faster
        self._up, self._down = Way(device), Way(device)
        # of this sweep and the one before: when computation was there, and what it waited for
        self._waits: list[tuple[Event, Event]] = []
        self._earlier: list[tuple[Event, Event]] = []

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        return self._up.copy(to, source, after)

    def write_back(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        return self._down.copy(to, source, after)

    def computed(self) -> Event:
        return torch.cuda.current_stream(self._index).record_event()

    def compute_after(self, event: Event) -> None:
        stream = torch.cuda.current_stream(self._index)
        there = torch.cuda.Event(enable_timing=True)
        there.record(stream)
        stream.wait_event(event)
        self._waits.append((there, event))

    def waited(self) -> float | None:
        waits, self._earlier, self._waits = self._earlier, self._waits, []
        if len(waits) < 2 or not all(event.query() for event in waits[-1]):
            return None
        whole = waits[0][0].elapsed_time(waits[-1][0])
        return float(sum(max(there.elapsed_time(come), 0.0) for there, come in waits) / whole)

    def has_happened(self, event: Event) -> bool:
        return bool(event.query())

    def synchronize(self) -> None:
        self._up.synchronize()
        self._down.synchronize()


@dataclass(eq=False)
class _Slot:
    buffer: torch.Tensor
    parcel: Resting | None = None
    acquired: bool = False
    borrowed: bool = False
    to_come: set[Unit] = field(default_factory=set)  # units that the sweep has yet to reach
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
        self.never_run: AbstractSet[Unit] = frozenset()

    def acquire(self, unit: Unit) -> torch.Tensor:
        parcel = self._store.resting[unit]
        slot = self._holding.get(parcel) or self._load(parcel, self._reclaim())
        slot.acquired = True
        if slot.ready is not None:
            self._lanes.compute_after(slot.ready)
        return slot.buffer[parcel.bounds[unit]]

    def written(self, unit: Unit) -> None:
        parcel = self._store.resting[unit]
        slot = self._holding[parcel]
        slot.stale.discard(unit)
        slot.unsaved.add(unit)
        if self._in_parts or not slot.stale:
            self._save(slot)

    def release(self, unit: Unit) -> None:
        self.put_back(unit)
        slot = self._holding[self._store.resting[unit]]
        slot.to_come.discard(unit)
        slot.reached = True

    def fetched(self) -> Sequence[Sequence[Unit]]:
        ahead = [s for s in self._slots if s.to_come and not s.reached and not s.acquired]
        return [tuple(slot.to_come) for slot in ahead]

    def has_arrived(self, unit: Unit) -> bool:
        slot = self._holding.get(self._store.resting[unit])
        return bool(slot and unit in slot.to_come and self._lanes.has_happened(slot.ready))

    def borrow(self, unit: Unit) -> torch.Tensor:
        base = self.acquire(unit)
        self._holding[self._store.resting[unit]].borrowed = True
        return base

    def put_back(self, unit: Unit) -> None:
        slot = self._holding[self._store.resting[unit]]
        slot.acquired = slot.borrowed = False
        slot.used = self._lanes.computed()

    def prefetch(self, units: Iterable[Unit]) -> None:
        for unit in units:
            parcel = self._store.resting[unit]
            if parcel in self._holding:
                continue
            slot = self._idle()
            if slot is None:
                return
            self._load(parcel, slot)

    def finish(self) -> None:
        for slot in self._slots:
            if slot.unsaved:
                self._save(slot)
        self._lanes.synchronize()
        for slot in self._slots:
            slot.parcel, slot.to_come = None, set()
            slot.acquired = slot.borrowed = False
            slot.ready = slot.used = None
            slot.saving = {}
        self._holding.clear()
        self._home.clear()

    @property
    def is_idle(self) -> bool:
        return not self._holding

    def waited(self) -> float | None:
        return self._lanes.waited()

    @property
    def buffers(self) -> Sequence[torch.Tensor]:
        return [slot.buffer for slot in self._slots]

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

    def _load(self, parcel: Resting, slot: _Slot) -> _Slot:
        if slot.parcel is not None:
            if slot.unsaved:
                self._save(slot)
            del self._holding[slot.parcel]
        saving = slot.saving.values()
        pieces = [piece for piece, _ in saving] if self._in_parts else []
        after = [slot.used, self._home.pop(parcel, None)]
        for part in _cut(slice(0, parcel.nbytes), pieces):
            after += [done for piece, done in saving if _overlap(piece, part)][-1:]
            events = [event for event in after if event is not None]
            slot.ready = self._lanes.upload(slot.buffer[part], parcel.flat[part], events)
            after = []  # later copies up, of whatever parcel, come after this one
        beyond = {at: one for at, one in slot.saving.items() if at >= parcel.nbytes}
        slot.parcel, slot.used, slot.saving = parcel, None, beyond
        slot.to_come, slot.reached = parcel.bounds.keys() - self.never_run, False
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
        size = PIECE_BEFORE_PASSES if slot.borrowed else PIECE
        for piece in (piece for part in parts for piece in _pieces(part, size)):
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
    size = part.stop - part.start
    count = max(round(size / about), 1)
    step = -(-size // count // 4096) * 4096
    return [
        slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)
    ]


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

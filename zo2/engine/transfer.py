"""Bringing units to the working device and back.

`InPlace` serves units that already are where passes run: those resident on the device and, when
the CPU is the working device, all of them. `Slots` streams: a fixed pool of device buffers is
filled ahead of the sweep, and updated weights go back while passes still compute. All ordering
is by events; nothing waits on the host inside a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from zo2.engine.partition import Unit
from zo2.engine.store import Store

Event = Any  # torch.cuda.Event, or None where copies are synchronous


class Transfer(Protocol):
    """How a sweep gets at a unit's weights on the working device."""

    def acquire(self, unit: Unit) -> list[torch.Tensor]:
        """The unit's weights on the working device, ready for work queued from now on."""
        ...

    def written(self, unit: Unit) -> None:
        """The acquired weights were updated by work queued so far: bring them home."""
        ...

    def release(self, unit: Unit) -> None:
        """No work queued from now on uses the acquired weights."""
        ...

    def prefetch(self, units: Iterable[Unit]) -> None:
        """These units will be acquired next, in this order."""
        ...

    def finish(self) -> None:
        """Forget what was fetched ahead; on return the resting buffers are up to date."""
        ...


class InPlace:
    """Units whose resting buffer is on the working device."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def acquire(self, unit: Unit) -> list[torch.Tensor]:
        return self._store.views[unit]

    def written(self, unit: Unit) -> None:
        pass

    def release(self, unit: Unit) -> None:
        pass

    def prefetch(self, units: Iterable[Unit]) -> None:
        pass

    def finish(self) -> None:
        pass


class Lanes(Protocol):
    """Copies in two directions beside the computation."""

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event: ...

    def write_back(
        self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]
    ) -> Event: ...

    def computed(self) -> Event:
        """An event at the end of the computation queued so far."""
        ...

    def compute_after(self, event: Event) -> None:
        """Let computation queued from now on wait for ``event``."""
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

    def synchronize(self) -> None:
        pass


class CudaLanes:
    """One stream for each direction beside the stream that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        return self._copy(self._up, to, source, after)

    def write_back(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        return self._copy(self._down, to, source, after)

    @staticmethod
    def _copy(
        stream: torch.cuda.Stream, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]
    ) -> Event:
        for event in after:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
            return stream.record_event()

    def computed(self) -> Event:
        return torch.cuda.current_stream(self._device).record_event()

    def compute_after(self, event: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)

    def synchronize(self) -> None:
        self._up.synchronize()
        self._down.synchronize()


@dataclass(eq=False)
class _Slot:
    buffer: torch.Tensor
    unit: Unit | None = None
    acquired: bool = False
    waiting: bool = False  # fetched ahead and not acquired yet
    ready: Event = None
    busy: list[Event] = field(default_factory=list)  # what still reads or writes the buffer


class Slots:
    """A pool of equal device buffers that streamed units pass through.

    Args:
        store: the resting buffers.
        streamed: the units that pass through; the largest sets the buffers' size.
        depth: number of buffers; with more than one, copies overlap computation.
        device: the working device.
        lanes: what copies.
    """

    def __init__(
        self, store: Store, streamed: set[Unit], depth: int, device: torch.device, lanes: Lanes
    ) -> None:
        self._store, self._streamed, self._lanes = store, streamed, lanes
        size = max(store.layouts[unit].nbytes for unit in streamed)
        depth = min(depth, len(streamed))
        self._slots = [
            _Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(depth)
        ]
        self._holding: dict[Unit, _Slot] = {}
        self._home: dict[Unit, Event] = {}  # end of the last write-back of a unit

    def acquire(self, unit: Unit) -> list[torch.Tensor]:
        slot = self._holding.get(unit) or self._load(unit, self._reclaim())
        slot.acquired, slot.waiting = True, False
        self._lanes.compute_after(slot.ready) if slot.ready is not None else None
        return self._store.layouts[unit].views(slot.buffer)

    def written(self, unit: Unit) -> None:
        slot, flat = self._holding[unit], self._store.flats[unit]
        done = self._lanes.write_back(
            flat, slot.buffer[: flat.numel()], _events(self._lanes.computed())
        )
        self._home[unit] = done
        slot.busy += _events(done)

    def release(self, unit: Unit) -> None:
        slot = self._holding[unit]
        slot.acquired = False
        slot.busy += _events(self._lanes.computed())

    def prefetch(self, units: Iterable[Unit]) -> None:
        for unit in units:
            if unit in self._holding:
                continue
            slot = self._idle()
            if slot is None:
                return
            self._load(unit, slot).waiting = True

    def finish(self) -> None:
        self._lanes.synchronize()
        for slot in self._slots:
            slot.unit, slot.acquired, slot.waiting, slot.ready = None, False, False, None
        self._holding.clear()
        self._home.clear()

    def _idle(self) -> _Slot | None:
        """A slot whose unit has been used, the longest ago."""
        for slot in self._slots:
            if not slot.acquired and not slot.waiting:
                self._slots.remove(slot)
                self._slots.append(slot)
                return slot
        return None

    def _reclaim(self) -> _Slot:
        """A slot for a unit that was not foreseen: an idle one, else the last fetched ahead."""
        slot = self._idle()
        if slot is None:
            slot = next(s for s in reversed(self._slots) if not s.acquired)
        return slot

    def _load(self, unit: Unit, slot: _Slot) -> _Slot:
        assert unit in self._streamed
        if slot.unit is not None:
            del self._holding[slot.unit]
        flat = self._store.flats[unit]
        after = slot.busy + _events(self._home.get(unit))
        slot.ready = self._lanes.upload(slot.buffer[: flat.numel()], flat, after)
        slot.unit, slot.busy = unit, []
        self._holding[unit] = slot
        return slot


def _events(event: Event) -> list[Event]:
    return [] if event is None else [event]

"""Copies up to the working device and home, beside what is computed there.

All ordering is by events; nothing waits on the host inside a sweep, nor between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from zo2.engine.streams import stream

Event = Any  # torch.cuda.Event, or None where copies are synchronous
# Streamed units of a sweep, from which it can be told whether Python is behind: the driver lets it
# run some 16 blocks ahead (a thousand kernels), so of fewer each finds the one before reached.
ENOUGH = 8


@dataclass(frozen=True)
class Waits:
    """What the computation of a sweep waited for.

    Attributes:
        copies: for what share of its time it waited for copies.
        host: for what share of the streamed units it had caught up with Python, which queues it.
    """

    copies: float
    host: float


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

    def waits(self) -> Waits | None:
        """Of the sweep before the one that has just been queued; ``None`` if not known."""
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

    def waits(self) -> Waits | None:
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

    Args:
        device: the CUDA device.
        name: of its streams; ways of one name take turns on the same.

    Attributes:
        stream: where the next copy goes.
        last: the end of the last one.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self.stream, self._other = (stream(device, f"{name} {turn}") for turn in range(2))
        self.last: Event = None
        self._index = device.index  # torch looks up the stream of a number faster

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        for event in (*after, self.last):
            if event is not None:
                self.stream.wait_event(event)
        self.last = torch.cuda.Event(enable_timing=True)
        computing = torch.cuda.current_stream(self._index)
        torch.cuda.set_stream(self.stream)  # `torch.cuda.stream` takes longer than the copy itself
        try:
            to.copy_(source, non_blocking=True)
        finally:
            torch.cuda.set_stream(computing)
        self.last.record(self.stream)
        self.stream, self._other = self._other, self.stream
        return self.last

    def synchronize(self) -> None:
        if self.last is not None:
            self.last.synchronize()


class CudaLanes:
    """Copies beside the stream that computes, on the current device."""

    def __init__(self, device: torch.device) -> None:
        self._index = device.index
        self._up, self._down = Way(device, "up"), Way(device, "home")
        # of this sweep and the one before: when computation was there, what it waited for, and
        # whether it was where the copy before this one was needed before Python was here
        self._noted: list[tuple[Event, Event, bool]] = []
        self._earlier: list[tuple[Event, Event, bool]] = []

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
        self.note(there, event)

    def note(self, there: Event, come: Event) -> None:
        """Computation that is to be ``there`` will wait for a copy to have ``come``."""
        caught_up = bool(self._noted) and self.has_happened(self._noted[-1][0])
        self._noted.append((there, come, caught_up))

    def waits(self) -> Waits | None:
        noted, self._earlier, self._noted = self._earlier, self._noted, []
        if len(noted) < 2 or not all(map(self.has_happened, noted[-1][:2])):
            return None
        whole = noted[0][0].elapsed_time(noted[-1][0])
        copies = sum(max(there.elapsed_time(come), 0.0) for there, come, _ in noted)
        caught_up = sum(one for *_, one in noted) / len(noted) if len(noted) >= ENOUGH else 0.0
        return Waits(copies / whole, caught_up)

    def has_happened(self, event: Event) -> bool:
        return bool(event.query())

    def synchronize(self) -> None:
        self._up.synchronize()
        self._down.synchronize()

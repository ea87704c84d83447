"""How passes go through a unit: one after another, or side by side on CUDA streams of their own.

Side by side pays where a pass's kernels leave most of a GPU idle and nothing else takes time, that
is in the graph of a small model's sweep. Passes do not touch each other's tensors, so the results
are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from zo2.engine.lockstep import Pass


class Formation(Protocol):
    """Where the work of passes is queued."""

    def fork(self) -> AbstractContextManager[None]:
        """Passes that go on within this context may do so together; what follows waits for all."""
        ...

    def lane(self, one: Pass) -> AbstractContextManager[object]:
        """Within this context, the work of a pass is queued in its place."""
        ...


class InFile:
    """One pass after another."""

    def fork(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def lane(self, one: Pass) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class Abreast:
    """Passes of one sweep take turns on a few streams, each always on the same.

    Args:
        streams: CUDA streams of one device.
    """

    def __init__(self, streams: list[torch.cuda.Stream]) -> None:
        self._streams = streams
        self._taken: dict[int, torch.cuda.Stream] = {}  # by the pass's identity

    @contextlib.contextmanager
    def fork(self) -> Iterator[None]:
        main = torch.cuda.current_stream(self._streams[0].device)
        for stream in self._streams:
            stream.wait_stream(main)
        yield
        for stream in self._streams:
            main.wait_stream(stream)

    def lane(self, one: Pass) -> AbstractContextManager[object]:
        free = self._streams[len(self._taken) % len(self._streams)]
        return torch.cuda.stream(self._taken.setdefault(id(one), free))

"""Models larger than the host: layers share host memory that holds only some of them.

A step moves as many bytes, at the same times and through the same buffers, and needs the same
device memory as with weights of every layer's own. Only what it computes means nothing: layers
write their updates over each other's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

from zo2.engine import store


@contextlib.contextmanager
def buffers(layers: int) -> Iterator[None]:
    """Within, at most so many page-locked buffers of one size are made; then these serve again."""
    make = store.PageLock
    made: dict[int, list[Any]] = defaultdict(list)
    turns: dict[int, Iterator[int]] = defaultdict(lambda: itertools.cycle(range(layers)))

    def lock(nbytes: int) -> Any:
        turn = next(turns[nbytes])
        if turn == len(made[nbytes]):
            made[nbytes].append(make(nbytes))
        return made[nbytes][turn]

    store.PageLock = lock  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        store.PageLock = make  # type: ignore[misc]


def weights(layers: nn.ModuleList, count: int) -> None:
    """Let layers beyond the first ``count`` lie where these do, before anything is written."""
    for index, layer in enumerate(layers):
        own = layers[index % count].parameters()
        for parameter, other in zip(layer.parameters(), own, strict=True):
            parameter.data = other.data

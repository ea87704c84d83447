"""Models larger than the host: layers share host memory that holds only some of them.

A step moves as many bytes, at the same times and through the same buffers, and needs the same
device memory as with weights of every layer's own. Only what it computes means nothing: layers
write their updates over each other's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from zo2.engine import store


@contextlib.contextmanager
def buffers(layers: int) -> Iterator[None]:
    """Within, at most so many page-locked buffers of one size are made; then these serve again."""
    make = store.PageLock
    made: dict[int, deque[Any]] = defaultdict(deque)

    def lock(nbytes: int) -> Any:
        locks = made[nbytes]
        if len(locks) < layers:
            locks.append(make(nbytes))
        else:
            locks.rotate(-1)
        return locks[-1]

    store.PageLock = lock  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        store.PageLock = make  # type: ignore[misc]


def append(layers: nn.ModuleList, more: Iterable[nn.Module]) -> None:
    """Append layers, without data as yet, whose weights lie where those of ``layers`` do."""
    own = list(layers)
    for layer, shared in zip(more, itertools.cycle(own)):
        for module, other in zip(layer.modules(), shared.modules(), strict=True):
            for name, parameter in other.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.data))
        layers.append(layer)

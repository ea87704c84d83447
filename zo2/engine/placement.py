"""Which units rest on the working device and which are streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zo2.engine.partition import Unit
from zo2.engine.store import Store
from zo2.engine.transfer import CudaLanes, HostLanes, InPlace, Slots, Transfer
from zo2.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """A choice of streamed units.

    Attributes:
        blocks: indices of the decoder blocks that are streamed; ``None`` for all. What lies
            outside the blocks (embeddings, final norm, head) stays on the device.
        slots: number of device buffers that streamed units share.
        copies: stream through buffers even where the working device is the CPU, whose weights
            passes could use where they rest.
    """

    blocks: frozenset[int] | None = None
    slots: int = 3
    copies: bool = False

    def streamed(self, units: Sequence[Unit]) -> set[Unit]:
        """The units that rest in host memory."""
        count = 1 + max((unit.block for unit in units if unit.block is not None), default=-1)
        unknown = sorted(b for b in self.blocks or () if not 0 <= b < count)
        if unknown:
            raise ConfigError(
                f"offloading_blocks names block {unknown[0]}, but the model has {count} blocks, "
                f"0 to {count - 1}."
            )
        return {
            unit
            for unit in units
            if unit.block is not None
            and not unit.held
            and (self.blocks is None or unit.block in self.blocks)
        }

    def transfer(self, store: Store, streamed: set[Unit], device: torch.device) -> Transfer:
        """What brings the streamed units to ``device``."""
        if not streamed:
            return InPlace(store)
        if device.type == "cuda":
            return Slots(store, streamed, self.slots, device, CudaLanes(device))
        if self.copies:
            return Slots(store, streamed, self.slots, device, HostLanes())
        return InPlace(store)


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

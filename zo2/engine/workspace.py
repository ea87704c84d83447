"""Where sweeps work: weights at rest where a plan puts them, and what they pass through."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch

from zo2.engine.partition import Unit
from zo2.engine.placement import Plan
from zo2.engine.store import Layout, Store
from zo2.engine.transfer import InHost, InPlace, Part, Transfer


@dataclass(frozen=True, eq=False)
class Small:
    """Units that rest side by side on the device and are perturbed together.

    Attributes:
        units: these.
        layout: of all their weights.
        base: these weights, 1-D uint8.
        copies: two, for perturbed ones.
        parts: of each copy, by unit.
    """

    units: AbstractSet[Unit]
    layout: Layout
    base: torch.Tensor
    copies: Sequence[torch.Tensor]
    parts: Sequence[dict[Unit, torch.Tensor]]


class Workspace:
    """Buffers on the working device, and what brings each unit there.

    Args:
        store: where weights rest, as ``plan`` says.
        plan: which units are streamed, and through what.
        device: the working device.

    Attributes:
        store: as given.
        streamed: the units that rest elsewhere than on the device.
        copied: those of them that pass through buffers, if there are any.
        by_rows: the others, which kernels read where they rest.
        stream: what brings these.
        scratch: for perturbed copies: 1-D uint8.
        small: units that have copies of their own, if any do.
        asked: of matrices in host memory, the parts that passes asked for in the last sweep.
    """

    def __init__(self, store: Store, plan: Plan, device: torch.device) -> None:
        self.store = store
        self.streamed, self.copied, self.by_rows = plan.streamed, plan.copied, plan.by_rows
        copies = torch.empty(plan.need.perturbed, dtype=torch.uint8, device=device)
        self.scratch, rest = copies[: plan.room], copies[plan.room :]
        self.small: Small | None = None
        if plan.small:
            resting = store.resting[plan.small[0]]
            layout = Layout([weight for unit in plan.small for weight in unit.weights])
            two = _parts(rest, 0, 2, resting.nbytes)
            by_unit = [{u: copy[bounds] for u, bounds in resting.bounds.items()} for copy in two]
            self.small = Small(resting.bounds.keys(), layout, resting.flat, two, by_unit)
        self.stream = plan.transfer(store, device)
        self._in_place, self._in_host = InPlace(store), InHost(store, device)
        self._is_gpu = device.type == "cuda"
        self.asked: dict[Unit, list[Part]] = {}
        # views of the same few buffers serve every sweep
        self._views: dict[tuple[Unit, int], list[torch.Tensor]] = {}
        self._mixed: dict[tuple[Unit, int, int], list[torch.Tensor]] = {}
        self._copies: dict[tuple[int, int, int], list[torch.Tensor]] = {}

    @property
    def buffers(self) -> list[torch.Tensor]:
        """The device's memory beside resident weights."""
        return [self.scratch, *self.stream.buffers]

    def transfer(self, unit: Unit) -> Transfer:
        """What brings a unit to the device."""
        if unit in self.copied:
            return self.stream
        return self._in_host if unit in self.by_rows else self._in_place

    @property
    def away(self) -> set[Unit]:
        """The units that a sweep should not store without need, since that takes the link time."""
        return self.streamed if self.stream.buffers or self._is_gpu else set()

    def finish(self) -> None:
        """Forget what was fetched ahead; on return the resting buffers are up to date."""
        self.stream.finish()
        self._in_host.finish()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is fetched ahead or on its way home."""
        return self.stream.is_idle and self._in_host.is_idle

    def tensors(self, unit: Unit, base: torch.Tensor, flat: torch.Tensor) -> list[torch.Tensor]:
        """A unit's weights in ``flat``; the frozen ones, which have no copies, in ``base``."""
        layout = self.store.layouts[unit]
        if flat is base or not layout.has_frozen:
            return self._view(unit, flat)
        key = unit, flat.data_ptr(), base.data_ptr()
        if key not in self._mixed:
            self._mixed[key] = layout.copies(flat, self._view(unit, base))
        return self._mixed[key]

    def copies(self, start: int, count: int, nbytes: int) -> list[torch.Tensor]:
        """Room in `scratch` for ``count`` copies of so many bytes, from byte ``start`` on."""
        key = start, count, nbytes
        if key not in self._copies:
            self._copies[key] = _parts(self.scratch, *key)
        return self._copies[key]

    def _view(self, unit: Unit, flat: torch.Tensor) -> list[torch.Tensor]:
        key = unit, flat.data_ptr()
        if key not in self._views:
            self._views[key] = self.store.layouts[unit].views(flat)
        return self._views[key]


def _parts(buffer: torch.Tensor, start: int, count: int, nbytes: int) -> list[torch.Tensor]:
    return [buffer[start + i * nbytes : start + (i + 1) * nbytes] for i in range(count)]

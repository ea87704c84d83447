"""Each unit's weights as one flat buffer, and where that buffer rests between steps.

A unit's buffer is exactly as large as its weights (each starts at a multiple of 64 bytes). On a
CUDA machine streamed units rest in page-locked host memory, made so by registering memory that
exists: torch's own page-locked allocator rounds up to powers of two and can double the need.
Buffers are filled weight by weight and each original is let go at once, so that a model and its
buffers never exist twice in memory.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Sequence

import torch

from zo2.engine.partition import Unit, Weight
from zo2.errors import ModelError

ALIGNMENT = 64


class Layout:
    """Where each weight of a unit lies in the unit's flat buffer."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.weights = weights
        self.offsets: list[int] = []
        end = 0
        for weight in weights:
            self.offsets.append(end)
            end += math.ceil(weight.nbytes / ALIGNMENT) * ALIGNMENT
        self.nbytes = end

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The weights within ``flat`` (1-D uint8, at least `nbytes` long), in their shapes."""
        return [
            flat[offset : offset + weight.nbytes]
            .view(weight.parameter.dtype)
            .view(weight.shape.shape)
            for offset, weight in zip(self.offsets, self.weights, strict=True)
        ]


class Store:
    """The resting buffers of all units.

    Args:
        units: the partition of the model; their parameters' data move into the buffers.
        device: the working device.
        streamed: which units rest in host memory; the others rest on the working device.
    """

    def __init__(self, units: Sequence[Unit], device: torch.device, streamed: set[Unit]) -> None:
        self.layouts = {unit: Layout(unit.weights) for unit in units}
        self.flats: dict[Unit, torch.Tensor] = {}
        self.views: dict[Unit, list[torch.Tensor]] = {}
        self._locks: list[PageLock] = []
        host = torch.device("cpu")
        for unit in units:
            self._adopt(unit, host if unit in streamed else device, device.type == "cuda")
        self.unread = {
            weight.parameter: torch.full(
                (), math.nan, dtype=weight.parameter.dtype, device=device
            ).expand(weight.shape.shape)
            for unit in units
            for weight in unit.weights
        }

    def _adopt(self, unit: Unit, home: torch.device, page_lock: bool) -> None:
        layout = self.layouts[unit]
        only = unit.weights[0].parameter.data if len(unit.weights) == 1 else None
        if only is not None and home.type == "cpu" and not page_lock and _stands_alone(only):
            flat = only.view(-1).view(torch.uint8)
        elif home.type == "cpu" and page_lock:
            self._locks.append(PageLock(layout.nbytes))
            flat = self._locks[-1].buffer
        else:
            flat = torch.empty(layout.nbytes, dtype=torch.uint8, device=home)
        views = layout.views(flat)
        for weight, view in zip(unit.weights, views, strict=True):
            if weight.parameter.data_ptr() != view.data_ptr():
                view.copy_(weight.parameter.data)
            weight.parameter.data = view
        self.flats[unit], self.views[unit] = flat, views

    def rest(self, unit: Unit) -> None:
        """Point the unit's parameters at its resting buffer."""
        for weight, view in zip(unit.weights, self.views[unit], strict=True):
            weight.parameter.data = view

    def hide(self, unit: Unit) -> None:
        """Point the unit's parameters at NaN, so that an unexpected read cannot go unnoticed."""
        for weight in unit.weights:
            weight.parameter.data = self.unread[weight.parameter]

    def is_intact(self) -> bool:
        """Whether every parameter still rests in its buffer (nobody moved or converted it)."""
        return all(
            weight.parameter.data_ptr() == view.data_ptr()
            and weight.parameter.dtype == view.dtype
            and weight.parameter.device == view.device
            for unit, views in self.views.items()
            for weight, view in zip(unit.weights, views, strict=True)
        )


def bind(unit: Unit, tensors: Sequence[torch.Tensor]) -> None:
    """Point the unit's parameters at ``tensors``."""
    for weight, tensor in zip(unit.weights, tensors, strict=True):
        weight.parameter.data = tensor


def _stands_alone(data: torch.Tensor) -> bool:
    """Whether a tensor is the only user of its storage and can serve as a buffer as it is."""
    return (
        data.device.type == "cpu"
        and data.is_contiguous()
        and data.untyped_storage().nbytes() == data.numel() * data.element_size()
        and data.data_ptr() % ALIGNMENT == 0
    )


class PageLock:
    """A page-locked uint8 buffer of ``nbytes``, in pages of its own.

    It is page-locked as long as this object lives; its memory lives as long as any tensor uses it.
    """

    def __init__(self, nbytes: int) -> None:
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        pages = torch.frombuffer(mmap.mmap(-1, max(nbytes, 1), **private), dtype=torch.uint8)
        self.buffer = pages[:nbytes]
        cudart = torch.cuda.cudart()
        error = int(cudart.cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
        if error:
            raise ModelError(
                f"The driver refused to page-lock {nbytes / 2**20:.0f} MiB of host memory (CUDA "
                f"error {error}). Raise the limit (ulimit -l, or the container's --ulimit "
                "memlock=-1), free host memory, or keep more blocks on the GPU "
                "(offloading_blocks)."
            )
        weakref.finalize(self, cudart.cudaHostUnregister, pages.data_ptr())

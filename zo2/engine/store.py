"""Each unit's weights as one flat buffer, and where that buffer rests between steps.

A unit's buffer is exactly as large as its weights (each starts at a multiple of 64 bytes). Units
that are moved together, a parcel, lie next to each other in one buffer. On a CUDA machine
streamed parcels rest in page-locked host memory, made so by registering memory that exists:
torch's own page-locked allocator rounds up to powers of two and can double the need. Buffers are
filled weight by weight and each original is let go at once, so that a model and its buffers
never exist twice in memory. No buffer is a mapped file: who changes the file later (by saving the
model where it came from) would change the weights.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from zo2.engine.partition import ALIGNMENT, Unit, Weight
from zo2.engine.resting import Marks
from zo2.errors import HostMemoryError

_dtype, _requires_grad = attrgetter("dtype"), attrgetter("requires_grad")


class Layout:
    """Where each weight of a unit lies in the unit's flat buffer: those that are trained first.

    Attributes:
        trains: of each weight, whether it is trained.
        nbytes: size of the buffer.
        trained: how many of its bytes an update may change, from its beginning.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.weights = weights
        self.trains = [weight.trainable for weight in weights]
        offsets: dict[Weight, int] = {}
        self.nbytes = self.trained = 0
        for weight in sorted(weights, key=lambda weight: not weight.trainable):
            offsets[weight] = self.nbytes
            self.nbytes += weight.stored
            if weight.trainable:
                self.trained = self.nbytes
        self.offsets = [offsets[weight] for weight in weights]
        self._forms = [
            (slice(offsets[one], offsets[one] + one.nbytes), one.parameter.dtype, one.shape.shape)
            for one in weights
        ]  # of parameters that are marked, asking takes longer

    @property
    def has_frozen(self) -> bool:
        """Whether there are bytes that no update changes."""
        return self.trained < self.nbytes

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The weights within ``flat`` (1-D uint8, at least `nbytes` long), in their shapes."""
        return [flat[part].view(dtype).view(shape) for part, dtype, shape in self._forms]

    def copies(self, flat: torch.Tensor, base: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `views`, of a copy of `trained` bytes; frozen weights are those of ``base``."""
        return [
            flat[part].view(dtype).view(shape) if trained else frozen
            for trained, (part, dtype, shape), frozen in zip(
                self.trains, self._forms, base, strict=True
            )
        ]


@dataclass(eq=False)
class Resting:
    """The buffer of units that are moved by one copy.

    Attributes:
        bounds: which bytes each unit has, in the order in which they lie.
        streamed: whether it lies in host memory, or on the working device.
        flat: 1-D uint8.
        lock: what keeps the buffer page-locked, if it is.
    """

    bounds: dict[Unit, slice]
    streamed: bool
    flat: torch.Tensor
    lock: PageLock | None = None

    @property
    def nbytes(self) -> int:
        return self.flat.numel()


class Store:
    """The resting buffers of all units.

    Args:
        parcels: (units that are moved together, whether they are streamed) pairs, of all units
            of the model; their parameters' data move into the buffers.
        device: the working device; what is streamed rests in host memory instead.
        progress: told the bytes of the weights of every parcel that has been taken in.
        asked: told which torch function is about to be given a parameter that is marked.

    Attributes:
        marks: of units whose parameters rest.

    Raises:
        HostMemoryError: there is not enough host memory, or it could not be page-locked. The
            model keeps its weights.
    """

    def __init__(
        self,
        parcels: Sequence[tuple[Sequence[Unit], bool]],
        device: torch.device,
        progress: Callable[[int], None],
        asked: Callable[[Any], None],
    ) -> None:
        units = [unit for together, _ in parcels for unit in together]
        self._device = device
        self.layouts = {unit: Layout(unit.weights) for unit in units}
        self.resting: dict[Unit, Resting] = {}
        self.flats: dict[Unit, torch.Tensor] = {}
        self.views: dict[Unit, list[torch.Tensor]] = {}
        self._parameters = [weight.parameter for unit in units for weight in unit.weights]
        for together, streamed in parcels:
            self._adopt(together, streamed)
            _return_freed_memory()
            progress(sum(unit.nbytes for unit in together))
        self._where = self._look()
        self.marks = Marks(units, asked)
        self._hidden: set[Unit] = set()
        self._unread = {unit: [(w.parameter, self._nan(w)) for w in unit.weights] for unit in units}

    def _nan(self, weight: Weight) -> torch.Tensor:
        """What a weight is while nobody may read it: NaN of its shape, in one element's memory."""
        one = torch.full((), math.nan, dtype=weight.parameter.dtype, device=self._device)
        return one.expand(weight.shape.shape)

    def _adopt(self, units: Sequence[Unit], streamed: bool) -> None:
        bounds, nbytes = {}, 0
        for unit in units:
            bounds[unit] = slice(nbytes, nbytes + self.layouts[unit].nbytes)
            nbytes = bounds[unit].stop
        self._place(Resting(bounds, streamed, *self._buffer(units, nbytes, streamed)))

    def _buffer(
        self, units: Sequence[Unit], nbytes: int, streamed: bool
    ) -> tuple[torch.Tensor, PageLock | None]:
        """Memory for units where they shall rest: their own, if they lie there ready for use."""
        weights = [weight for unit in units for weight in unit.weights]
        only = weights[0].parameter.data if len(weights) == 1 else None
        if streamed and self._device.type == "cuda":
            with torch.cuda.device(self._device):  # whose kernels may have to reach it
                lock = PageLock(nbytes)
            return lock.buffer, lock
        home = torch.device("cpu") if streamed else self._device
        if only is not None and home.type == "cpu" and _stands_alone(only, nbytes):
            return only.view(-1).view(torch.uint8), None
        return _memory(nbytes, home), None

    def _place(self, resting: Resting) -> None:
        """Move the units' weights into their buffer, unless they are there."""
        for unit, bounds in resting.bounds.items():
            self.resting[unit] = resting
            self.flats[unit] = resting.flat[bounds]
            self.views[unit] = self.layouts[unit].views(self.flats[unit])
            for weight, view in zip(unit.weights, self.views[unit], strict=True):
                if weight.parameter.data_ptr() != view.data_ptr():
                    view.copy_(weight.parameter.data)
                weight.parameter.data = view

    def move(self, unit: Unit, streamed: bool) -> None:
        """Let a unit, and what is moved with it, rest elsewhere from now on."""
        old = self.resting[unit]
        units = list(old.bounds)
        self._place(Resting(old.bounds, streamed, *self._buffer(units, old.nbytes, streamed)))
        self._where = self._look()

    @property
    def page_locked(self) -> int:
        """Bytes of host memory that are."""
        return sum(one.nbytes for one in set(self.resting.values()) if one.lock is not None)

    def bind(self, unit: Unit, tensors: Sequence[torch.Tensor]) -> None:
        """Point the unit's parameters at ``tensors``."""
        self.marks.clear(unit)
        self._hidden.discard(unit)
        for weight, tensor in zip(unit.weights, tensors, strict=True):
            weight.parameter.data = tensor

    def rest(self, unit: Unit) -> None:
        """Point the unit's parameters at its resting buffer."""
        if unit not in self.marks:
            self.bind(unit, self.views[unit])

    def hide(self, unit: Unit) -> None:
        """Point the unit's parameters at NaN, so that an unexpected read cannot go unnoticed."""
        if unit in self._hidden:
            return
        self.marks.clear(unit)
        for parameter, nan in self._unread[unit]:
            parameter.data = nan
        self._hidden.add(unit)

    def is_intact(self) -> bool:
        """Whether every parameter still rests in its buffer (nobody moved or converted it), and
        is trained or frozen as it was.
        """
        return self._look() == self._where

    def _look(self) -> tuple[list[int], list[torch.dtype], list[bool]]:
        """Where the parameters' data are, in which precision, and whether they are trained; a GPU
        waits for it, hence by `map`.
        """
        return (
            [*map(torch.Tensor.data_ptr, self._parameters)],
            [*map(_dtype, self._parameters)],
            [*map(_requires_grad, self._parameters)],
        )


def _stands_alone(data: torch.Tensor, nbytes: int) -> bool:
    """Whether a tensor is the only user of its storage and can serve as a buffer as it is."""
    return (
        data.device.type == "cpu"
        and data.untyped_storage().resizable()  # torch's own memory: no mapped file, no numpy array
        and data.is_contiguous()
        and data.untyped_storage().nbytes() == data.numel() * data.element_size() == nbytes
        and data.data_ptr() % ALIGNMENT == 0
    )


def _memory(nbytes: int, device: torch.device) -> torch.Tensor:
    """``nbytes`` of ``device``, 1-D uint8."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    except RuntimeError:
        if device.type != "cpu":
            raise
        raise HostMemoryError(
            f"The machine refused {nbytes / 2**20:.0f} MiB of host memory{_host_memory_left()}. "
            "Free host memory, or load the model in a precision of fewer bytes (bfloat16)."
        ) from None


def _return_freed_memory() -> None:
    """Give the system back what the C library keeps of weights that were let go.

    glibc keeps freed blocks below 32 MiB for later, which can be as much as all weights.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none and keeps little
        if trim is not None:
            trim(ctypes.c_size_t(0))


class PageLock:
    """A page-locked uint8 buffer of ``nbytes``, in pages of its own.

    It is page-locked as long as this object lives; its memory lives as long as any tensor uses it.
    """

    def __init__(self, nbytes: int) -> None:
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        try:
            memory = mmap.mmap(-1, max(nbytes, 1), **private)
        except OSError as error:
            raise HostMemoryError(
                f"The machine refused {nbytes / 2**20:.0f} MiB of host memory ({error.strerror}). "
                "Free host memory, or keep more of the model on the GPU (device_memory_budget, "
                "offloading_blocks)."
            ) from None
        pages = torch.frombuffer(memory, dtype=torch.uint8)
        self.buffer = pages[:nbytes]
        cudart = torch.cuda.cudart()
        refused = int(cudart.cudaHostRegister(pages.data_ptr(), pages.numel(), 0))
        if refused:
            raise HostMemoryError(
                f"The driver refused to page-lock {nbytes / 2**20:.0f} MiB of host memory (CUDA "
                f"error {refused}){_host_memory_left()}. Free host memory (under WSL raise memory= "
                "in .wslconfig), or keep more of the model on the GPU (device_memory_budget, "
                "offloading_blocks)."
            )
        weakref.finalize(self, _unlock, pages.data_ptr())


def _unlock(address: int) -> None:
    torch.cuda.synchronize()  # a copy may still be on its way
    torch.cuda.cudart().cudaHostUnregister(address)


def _host_memory_left() -> str:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return ""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"; {free / 2**30:.1f} GiB are free"

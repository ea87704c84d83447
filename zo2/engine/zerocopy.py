"""Small things that pass between host and GPU beside the copies of weights.

A GPU carries out its copies of one direction one after another, whatever their streams. A batch, a
seed or a loss that is copied as usual waits for the parcels of weights before it (11 ms for one of
600 MB), and meanwhile nothing is computed. A kernel, however, reads and writes page-locked host
memory without waiting for any copy.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from typing import Any

import torch

SMALL = 1 << 20  # bytes: kernels reach host memory at a fraction of the rate of copies
ALIGNED = 64  # bytes, of which each tensor that is brought begins at a multiple


def read(numbers: torch.Tensor) -> Any:
    """The values of a float32 tensor as (nested) lists, when work queued so far has made them."""
    if numbers.device.type != "cuda":
        return numbers.tolist()
    with torch.cuda.device(numbers.device):
        host = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
        seen = mapped(_bytes(host), numbers.device)
        if seen is None:
            return numbers.tolist()
        _write(seen, _bytes(numbers.contiguous()))
        torch.cuda.current_stream().synchronize()
    return host.tolist()


def bring(values: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """``values`` on ``device``, as by ``value.to(device)``; the small ones by one kernel."""
    are_small = [_is_small(value, device) for value in values]
    small = list(compress(values, are_small))
    brought = iter(_bring_together(small, device) if small else [])
    return [
        next(brought) if is_small else value.to(device)
        for value, is_small in zip(values, are_small, strict=True)
    ]


def _bring_together(values: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    sizes = [value.numel() * value.element_size() for value in values]
    *starts, total = accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0)
    parts = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    with torch.cuda.device(device):
        host = torch.empty(total, dtype=torch.uint8, device="cpu", pin_memory=True)
        seen = mapped(host, device)
        if seen is None:
            return [value.to(device) for value in values]
        for value, part in zip(values, parts, strict=True):
            _as(value, host[part]).copy_(value)
        there = torch.empty(total, dtype=torch.uint8, device=device)
        _write(there, seen)
        _keep_until_read(host)
    return [_as(value, there[part]) for value, part in zip(values, parts, strict=True)]


def _is_small(value: torch.Tensor, device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and value.device.type == "cpu"
        and type(value) is torch.Tensor
        and value.layout is torch.strided
        and not value.requires_grad
        and 0 < value.numel() * value.element_size() <= SMALL
    )


def _as(value: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Bytes as a tensor like ``value``."""
    return memory.view(value.dtype).view(value.shape)


# Host memory that kernels may still read, of which torch does not know, and when they have.
_lent: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()


def _keep_until_read(host: torch.Tensor) -> None:
    while _lent and _lent[0][0].query():
        _lent.popleft()
    _lent.append((torch.cuda.current_stream().record_event(), host))


class Table:
    """Bytes on a device that the host rewrites now and then; they stay where they are.

    Args:
        nbytes: their number.
        device: where kernels read them.

    Attributes:
        there: uint8 (nbytes) on the device.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.there = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self._host, self._mapped, self._brought = self.there, None, None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self._host = torch.zeros(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
                self._mapped = mapped(self._host, device)
                self._brought = torch.cuda.Event()
        address = self._host.data_ptr()  # torch would take longer to write a few numbers
        self._bytes = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[memoryview]:
        """Bytes in host memory to write to; work queued from then on finds them on the device."""
        if self._brought is None:
            yield self._bytes
            return
        self._brought.synchronize()  # kernels may still read what was written before
        yield self._bytes
        with torch.cuda.device(self.there.device):
            if self._mapped is None:
                self.there.copy_(self._host, non_blocking=True)
            else:
                _write(self.there, self._mapped)
            self._brought.record()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory: 1-D uint8."""
    return tensor.view(-1).view(torch.uint8)


def _write(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy bytes by a kernel: between these memories, `copy_` would be a copy as usual."""
    torch.bitwise_or(source, 0, out=to)


def mapped(host: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """Page-locked bytes as the device's kernels see them; none if they are known as another GPU's.

    ``host`` must live, and keep what it holds, until the kernels that read it have run.
    """
    seen = torch.as_tensor(_Mapped(host), device=device)
    return seen if seen.data_ptr() == host.data_ptr() else None


class _Mapped:
    """Bytes of host memory under the address by which kernels know them."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(host.shape),
            "typestr": "|u1",
            "data": (host.data_ptr(), False),
            "version": 2,
        }

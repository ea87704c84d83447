"""Small things that pass between host and GPU beside the copies of weights.

A GPU carries out its copies of one direction one after another, whatever their streams. A batch, a
seed or a loss that is copied as usual waits for the parcels of weights before it (11 ms for one of
600 MB), and meanwhile nothing is computed. A kernel, however, reads and writes page-locked host
memory without waiting for any copy.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

SMALL = 1 << 20  # bytes: kernels reach host memory at a fraction of the rate of copies


def read(numbers: torch.Tensor) -> Any:
    """The values of a float32 tensor as (nested) lists, when work queued so far has made them."""
    if numbers.device.type != "cuda":
        return numbers.tolist()
    with torch.cuda.device(numbers.device):
        host = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
        mapped = _mapped(_bytes(host), numbers.device)
        if mapped is None:
            return numbers.tolist()
        _write(mapped, _bytes(numbers.contiguous()))
        torch.cuda.current_stream().synchronize()
    return host.tolist()


def bring(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``value`` on ``device``, as by ``value.to(device)``."""
    usual = (
        device.type != "cuda"
        or value.device.type != "cpu"
        or type(value) is not torch.Tensor
        or value.layout is not torch.strided
        or value.requires_grad
        or not 0 < value.numel() * value.element_size() <= SMALL
    )
    if usual:
        return value.to(device)
    with torch.cuda.device(device):
        host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
        mapped = _mapped(_bytes(host.copy_(value)), device)
        if mapped is None:
            return value.to(device)
        there = torch.empty(value.shape, dtype=value.dtype, device=device)
        _write(_bytes(there), mapped)
        _keep_until_read(host)
    return there


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
                self._mapped = _mapped(self._host, device)
                self._brought = torch.cuda.Event()

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[torch.Tensor]:
        """Bytes in host memory to write to; work queued from then on finds them on the device."""
        if self._brought is None:
            yield self._host
            return
        self._brought.synchronize()  # kernels may still read what was written before
        yield self._host
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


def _mapped(host: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    """Page-locked bytes as the device's kernels see them; none if they are known as another GPU's.

    ``host`` must live, and keep what it holds, until the kernels that read it have run.
    """
    mapped = torch.as_tensor(_Mapped(host), device=device)
    return mapped if mapped.data_ptr() == host.data_ptr() else None


class _Mapped:
    """Bytes of host memory under the address by which kernels know them."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(host.shape),
            "typestr": "|u1",
            "data": (host.data_ptr(), False),
            "version": 2,
        }

"""Reading a few numbers off a GPU past the copies of weights that are on their way home.

A GPU carries out its copies to the host one after another, whatever their streams: read as usual, a
loss waits for the write-back of every block queued before it (10 ms for six of 100 MB), and the
link is idle from then until the update that the loss decides. A kernel, however, can write into
page-locked host memory without waiting for any copy.
"""

from __future__ import annotations

from typing import Any

import torch


def read(numbers: torch.Tensor) -> Any:
    """The values of a float32 tensor as (nested) lists, when work queued so far has made them."""
    if numbers.device.type != "cuda":
        return numbers.tolist()
    with torch.cuda.device(numbers.device):
        host = torch.empty(numbers.shape, dtype=torch.float32, device="cpu", pin_memory=True)
        mapped = torch.as_tensor(_Mapped(host))
        if mapped.device != numbers.device:  # the driver knows this memory as another GPU's
            return numbers.tolist()
        torch.add(numbers, 0.0, out=mapped)
        torch.cuda.current_stream().synchronize()
    return host.tolist()


class _Mapped:
    """Page-locked host memory under the address by which kernels know it."""

    def __init__(self, host: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(host.shape),
            "typestr": "<f4",
            "data": (host.data_ptr(), False),
            "version": 2,
        }

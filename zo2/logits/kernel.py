"""Taking columns of logits into a running cross entropy as one Triton kernel.

A program reads its row twice, for the largest logit and for the sum of exponentials: the second
time from the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from zo2.engine.launching import ALIGNED, Again, Launcher

LENGTH = 2048  # elements that a program reads at once
EVEN = 16  # elements; rows that begin at multiples are read several elements at once
MOST = 1000  # launches, each of another number of rows or columns, that are remembered


@functools.partial(triton.jit, do_not_specialize=["stride", "start", "count"])
def columns(logits, target, known, stride, start, count, EVEN: tl.constexpr, LENGTH: tl.constexpr):
    """Take ``count`` columns of one row for each program, from the one at ``start`` on."""
    row = tl.program_id(0)
    first = row.to(tl.int64) * count
    if EVEN:
        first, count = tl.multiple_of(first, 16), tl.multiple_of(count, 16)
    place = tl.arange(0, LENGTH)
    tops = tl.full((LENGTH,), float("-inf"), tl.float32)
    for begin in range(0, count, LENGTH):
        at = begin + place
        x = tl.load(logits + first + at, mask=at < count, other=float("-inf"))
        tops = tl.maximum(tops, x.to(tl.float32))
    before = tl.load(known + row)
    top = tl.maximum(before, tl.max(tops, 0))
    shift = tl.where(top == float("-inf"), 0.0, top)  # else the difference is not a number
    sums = tl.zeros((LENGTH,), tl.float32)
    for begin in range(0, count, LENGTH):
        at = begin + place
        x = tl.load(logits + first + at, mask=at < count, other=float("-inf"))
        sums += tl.exp(x.to(tl.float32) - shift)
    total = tl.exp(before - shift) + tl.sum(sums, 0)
    tl.store(known + row, shift + tl.log(total))
    wanted = tl.load(target + row) - start
    inside = (wanted >= 0) & (wanted < count)
    found = tl.load(logits + first + wanted, mask=inside, other=0)
    tl.store(known + stride + row, found.to(tl.float32), mask=inside)


_COLUMNS = Launcher(columns, num_warps=8, enable_fp_fusion=False)
_launches: dict[Hashable, Again] = {}


def fold(logits: torch.Tensor, target: torch.Tensor, start: int, known: torch.Tensor) -> None:
    """The `zo2.logits.crossentropy.Fold` of contiguous tensors on the current CUDA device."""
    (rows, count), stride = logits.shape, known.stride(0)
    moving = logits, target, known
    addresses = [one.data_ptr() for one in moving]
    aligned = [address % ALIGNED == 0 for address in addresses]
    kind = logits.device, logits.dtype, rows, count, stride, start, *aligned
    if (again := _launches.get(kind)) is not None:
        again(*addresses)
        return
    constants = {"EVEN": count % EVEN == 0, "LENGTH": LENGTH}
    again = _COLUMNS(rows, (*moving, stride, start, count), constants)
    if again is not None:
        if len(_launches) == MOST:
            _launches.clear()
        _launches[kind] = again

"""The cross entropy of logits that exist some rows and columns at a time.

Of each row two numbers are kept while columns come and go: the logarithm of the sum of exponentials
over those that have come, and the logit of the target once it has. So the head's weights are read,
or made, once for all rows, and what is computed at once needs little memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from zo2.directions import gpu

CHUNK = 48 << 20  # bytes of logits that are computed at once, in their own precision
ROWS = 2048  # at most so many of them
COLUMNS = 256  # and a multiple of so many: a GPU's products come in tiles of as many

# of some columns, what makes the logits of some rows
Product = Callable[[slice], Callable[[slice], torch.Tensor]]
# takes logits (rows, columns from the one at ``start`` on), targets and ``start`` into what is
# known of these rows, float32 (2, rows): the logarithm of the sum of exponentials so far, and the
# logit of the target; NaN as long as it has not come
Fold = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], None]


@torch.no_grad()
def cross_entropy(
    product: Product,
    vocabulary: int,
    most: int,
    itemsize: int,
    target: torch.Tensor,
    ignore_index: int,
    reduction: str,
) -> torch.Tensor:
    """The cross entropy, summed in float32; NaN if a target is no column and is not ignored.

    Args:
        product: called for every part of the columns once, and what it returns for every part of
            the rows.
        vocabulary: how many columns there are.
        most: how many of them may be asked for at once.
        itemsize: bytes of one logit.
        target: int64 (rows,), the column that is right.
        ignore_index: the target of rows that do not count.
        reduction: ``"sum"``, or ``"mean"`` over the rows that count.

    Returns:
        float32, without dimensions.
    """
    target = target.contiguous()
    known = unknown(len(target), target.device)
    fold = _fold_of(target)
    width = min(most, _width(itemsize * min(ROWS, max(1, len(target)))))
    with torch.cuda.device_of(target):  # Triton launches on the current device
        for columns in slices(vocabulary, width):
            logits = product(columns)
            for rows in slices(len(target), ROWS):
                fold(logits(rows), target[rows], columns.start, known[:, rows])
    lse, picked = known[0], known[1]
    counts = target != ignore_index
    total = torch.where(counts, lse - picked, 0).sum()
    return total / counts.sum() if reduction == "mean" else total


def unknown(rows: int, device: torch.device) -> torch.Tensor:
    """What is known of so many rows before any column has come; see `Fold`."""
    known = torch.full((2, rows), torch.nan, dtype=torch.float32, device=device)
    known[0] = -torch.inf
    return known


def _width(column: int) -> int:
    """How many columns, of so many bytes each, are computed at once."""
    return max(COLUMNS, CHUNK // column // COLUMNS * COLUMNS)


def slices(length: int, size: int) -> list[slice]:
    """Parts of ``length``, each but the last of ``size``."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _fold_of(target: torch.Tensor) -> Fold:
    """By the kernel where it runs; torch sums in another order, so losses differ by rounding."""
    if target.is_meta:  # the kernel needs no memory, which is all that is asked where no data are
        return lambda logits, target, start, known: None
    if target.is_cuda and gpu.available():
        from zo2.logits import kernel  # needs Triton

        return kernel.fold
    return fold


def fold(logits: torch.Tensor, target: torch.Tensor, start: int, known: torch.Tensor) -> None:
    """The `Fold` by torch operations."""
    lse, picked = known[0], known[1]
    logits = logits.float()
    lse.copy_(torch.logaddexp(lse, logits.logsumexp(-1)))
    at = target - start
    inside = (at >= 0) & (at < logits.shape[-1])
    found = logits.gather(-1, at.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]
    picked.copy_(torch.where(inside, found, picked))

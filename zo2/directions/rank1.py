"""z = u vᵀ with random signs u and v: rows + columns random bits for rows × columns elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zo2.directions.base import Family, ParameterShape, register
from zo2.directions.streams import fill_signs
from zo2.directions.words import Purpose

_SMALL_MATRIX = 4096  # elements; smaller matrices of a stack are made several at a time


@register("rank1")
class Rank1(Family):
    """For matrices z_ij = u_i v_j; for each matrix of a stack its own pair; for vectors signs.

    E[z_ij z_kl] = E[u_i u_k] E[v_j v_l] is 1 for (i, j) = (k, l) and 0 otherwise, so E[z zᵀ] is
    the identity as for the dense families. A sum over n seeds is one product of thin matrices.
    """

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        self.accumulate(out, [(seed, 1.0)], parameter, start)

    def accumulate(
        self,
        out: torch.Tensor,
        terms: Sequence[tuple[int, float]],
        parameter: ParameterShape,
        start: int,
    ) -> None:
        if not parameter.is_matrix:
            _accumulate_vector(out, terms, parameter, start)
            return
        rows, columns = parameter.shape[-2:]
        size, stop = rows * columns, start + out.numel()
        if size < _SMALL_MATRIX and start // size != (stop - 1) // size:
            first, last = start // size, -(-stop // size)
            stack = _product(terms, parameter.index, first, last, 0, rows, parameter, out.device)
            out.copy_(stack.reshape(-1)[start - first * size : stop - first * size])
            return
        while start < stop:  # one matrix, or what is left of it, at a time
            matrix, offset = divmod(start, size)
            count = min(stop - start, size - offset)
            low, high = offset // columns, -(-(offset + count) // columns)
            part = _product(
                terms, parameter.index, matrix, matrix + 1, low, high, parameter, out.device
            )
            skip = offset - low * columns
            out[:count].copy_(part.reshape(-1)[skip : skip + count])
            out, start = out[count:], start + count


def _accumulate_vector(
    out: torch.Tensor,
    terms: Sequence[tuple[int, float]],
    parameter: ParameterShape,
    start: int,
) -> None:
    z = torch.empty_like(out)
    out.zero_()
    for seed, coefficient in terms:
        fill_signs(z, seed, parameter.index, Purpose.SIGN, start)
        out.add_(z.mul_(coefficient))


def _product(
    terms: Sequence[tuple[int, float]],
    index: int,
    first: int,
    last: int,
    low: int,
    high: int,
    parameter: ParameterShape,
    device: torch.device,
) -> torch.Tensor:
    """Rows ``low`` .. ``high`` of matrices ``first`` .. ``last``: (matrices, rows, columns)."""
    rows, columns = parameter.shape[-2:]
    count = last - first
    u = torch.empty(len(terms), count, high - low, device=device)
    v = torch.empty(len(terms), count, columns, device=device)
    for k, (seed, coefficient) in enumerate(terms):
        if count == 1:
            fill_signs(u[k, 0], seed, index, Purpose.ROW_SIGN, first * rows + low)
        else:
            fill_signs(u[k].view(-1), seed, index, Purpose.ROW_SIGN, first * rows)
        fill_signs(v[k].view(-1), seed, index, Purpose.COLUMN_SIGN, first * columns)
        v[k].mul_(coefficient)
    if len(terms) == 1:
        return u[0].unsqueeze(-1) * v[0].unsqueeze(-2)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # coefficients need all their bits
    try:
        return u.permute(1, 2, 0) @ v.permute(1, 0, 2)
    finally:
        torch.set_float32_matmul_precision(precision)

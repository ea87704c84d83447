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
            u = _factors(
                terms, parameter, Purpose.ROW_SIGN, first * rows, (last - first, rows), out
            )
            v = _factors(
                terms, parameter, Purpose.COLUMN_SIGN, first * columns, (last - first, columns), out
            )
            stack = _product(terms, u, v).reshape(-1)
            out.copy_(stack[start - first * size : stop - first * size])
            return
        while start < stop:  # one matrix, or what is left of it, at a time
            matrix, offset = divmod(start, size)
            count = min(stop - start, size - offset)
            _fill_part(out[:count], terms, parameter, matrix, offset)
            out, start = out[count:], start + count


def _fill_part(
    out: torch.Tensor,
    terms: Sequence[tuple[int, float]],
    parameter: ParameterShape,
    matrix: int,
    offset: int,
) -> None:
    """Elements ``offset`` .. of one matrix: the end of a row, whole rows, the start of a row."""
    rows, columns = parameter.shape[-2:]
    low, high = offset // columns, -(-(offset + out.numel()) // columns)
    u = _factors(terms, parameter, Purpose.ROW_SIGN, matrix * rows + low, (high - low,), out)
    v = _factors(terms, parameter, Purpose.COLUMN_SIGN, matrix * columns, (columns,), out)
    skip = offset - low * columns
    head = min(columns - skip, out.numel()) if skip else 0
    if head:
        out[:head].copy_(_product(terms, u[:, :1], v[:, skip : skip + head]).view(-1))
        out, u = out[head:], u[:, 1:]
    whole = out.numel() // columns
    if whole:
        _product(terms, u[:, :whole], v, out[: whole * columns].view(whole, columns))
        out, u = out[whole * columns :], u[:, whole:]
    if out.numel():
        out.copy_(_product(terms, u[:, :1], v[:, : out.numel()]).view(-1))


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


def _factors(
    terms: Sequence[tuple[int, float]],
    parameter: ParameterShape,
    purpose: Purpose,
    start: int,
    shape: tuple[int, ...],
    like: torch.Tensor,
) -> torch.Tensor:
    """Signs of every term, (terms, *shape); the columns' are scaled by the coefficients."""
    factors = torch.empty((len(terms), *shape), dtype=torch.float32, device=like.device)
    for one, (seed, coefficient) in zip(factors, terms, strict=True):
        fill_signs(one.view(-1), seed, parameter.index, purpose, start)
        if purpose is Purpose.COLUMN_SIGN:
            one.mul_(coefficient)
    return factors


def _product(
    terms: Sequence[tuple[int, float]],
    u: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum_k u_k v_kᵀ for u (terms, ..., rows) and v (terms, ..., columns): (..., rows, columns)."""
    if len(terms) == 1:
        return torch.mul(u[0].unsqueeze(-1), v[0].unsqueeze(-2), out=out)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # coefficients need all their bits
    try:
        return torch.matmul(u.movedim(0, -1), v.movedim(0, -2), out=out)
    finally:
        torch.set_float32_matmul_precision(precision)

"""Dense random signs: one random bit per element."""

from __future__ import annotations

import torch

from zo2.directions import compiled
from zo2.directions.base import Family, ParameterShape, register
from zo2.directions.words import Purpose, signs


def fill_signs(out: torch.Tensor, seed: int, parameter: int, purpose: Purpose, start: int) -> None:
    """Write signs ``start`` .. of a stream into ``out`` by the fastest means at hand."""
    if out.device.type == "cpu" and compiled.available():
        compiled.fill_signs(out, seed, parameter, purpose, start)
    else:
        out.copy_(signs(seed, parameter, purpose, start, out.numel(), out.device))


@register("rademacher")
class Rademacher(Family):
    """z_e is +1 or -1 with equal probability, independent."""

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        fill_signs(out, seed, parameter.index, Purpose.SIGN, start)

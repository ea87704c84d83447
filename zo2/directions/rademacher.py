"""Dense random signs: one random bit per element."""

from __future__ import annotations

import torch

from zo2.directions.base import Family, ParameterShape, register
from zo2.directions.streams import fill_signs
from zo2.directions.words import Purpose


@register("rademacher")
class Rademacher(Family):
    """z_e is +1 or -1 with equal probability, independent."""

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        fill_signs(out, seed, parameter.index, Purpose.SIGN, start)

"""Dense standard normals, the direction of MeZO."""

from __future__ import annotations

import torch

from zo2.directions.base import Family, ParameterShape, register
from zo2.directions.streams import fill_normals
from zo2.directions.words import Purpose


@register("gaussian")
class Gaussian(Family):
    """z_e ~ N(0, 1), independent."""

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        fill_normals(out, seed, parameter.index, Purpose.NORMAL, start)

"""z = 1 everywhere: no randomness, for comparing runs by hand (``debug_mode``)."""

from __future__ import annotations

import torch

from zo2.directions.base import Family, ParameterShape, register


@register("ones")
class Ones(Family):
    """z_e = 1. Not a random direction: its estimate is the derivative along the diagonal."""

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        out.fill_(1.0)

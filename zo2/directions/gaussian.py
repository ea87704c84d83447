"""Dense standard normals, the direction of MeZO."""

from __future__ import annotations

import math

import torch

from zo2.directions import compiled
from zo2.directions.base import Family, ParameterShape, register
from zo2.directions.normals import box_muller
from zo2.directions.words import LANES, TILE, Purpose, words


@register("gaussian")
class Gaussian(Family):
    """z_e ~ N(0, 1), independent. Element e uses words e and its partner half a tile row away."""

    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        if out.device.type == "cpu" and compiled.available():
            compiled.fill_normals(out, seed, parameter.index, Purpose.NORMAL, start)
            return
        first, last = start // TILE, math.ceil((start + out.numel()) / TILE)
        stream = words(
            seed, parameter.index, Purpose.NORMAL, first * TILE, (last - first) * TILE, out.device
        ).view(-1, 2, 2, LANES)  # (tile, pair, word of the pair, lane)
        z = torch.stack(box_muller(stream[:, :, 0], stream[:, :, 1]), dim=2).reshape(-1)
        offset = start - first * TILE
        out.copy_(z[offset : offset + out.numel()])

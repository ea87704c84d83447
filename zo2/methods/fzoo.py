"""FZOO: W <- W - lr (1/n) sum_i (l_i - l_0) / sigma * z_i, sigma the spread of the l_i.

l_0 is the loss at W and l_i the loss at W + eps z_i, i = 1..n (FZOO, ICLR 2026). The step is
normalised by the losses' own standard deviation, so it needs no second side.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from zo2.config import FZOOConfig, ZOSettings
from zo2.directions.seeds import child_seed
from zo2.methods.base import Estimate, Perturbation, register


@register("fzoo", FZOOConfig)
class FZOO:
    """n + 1 passes per step: the weights themselves and n directions."""

    def __init__(self, config: ZOSettings) -> None:
        assert isinstance(config, FZOOConfig)
        self.directions = config.directions

    def perturbations(self, seed: int, eps: float) -> list[Perturbation]:
        one_sided = [Perturbation(child_seed(seed, i), eps) for i in range(self.directions)]
        return [Perturbation(), *one_sided]

    def estimate(
        self, perturbations: Sequence[Perturbation], losses: Sequence[float], eps: float
    ) -> list[Estimate]:
        base, *perturbed = losses
        sigma = statistics.stdev(perturbed)
        if sigma == 0.0:  # no direction changed the loss: nothing was learnt
            return []
        scale = 1 / (len(perturbed) * sigma)
        return [
            Estimate(p.seed, (loss - base) * scale)
            for p, loss in zip(perturbations[1:], perturbed, strict=True)
        ]

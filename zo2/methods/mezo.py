"""MeZO: g = (L(W + eps z) - L(W - eps z)) / (2 eps) along one direction z (arXiv 2305.17333)."""

from __future__ import annotations

from collections.abc import Sequence

from zo2.config import MeZOSGDConfig, ZOSettings
from zo2.methods.base import Estimate, Perturbation, register


@register("mezo-sgd", MeZOSGDConfig)
class MeZO:
    """Two passes per step, on both sides of the weights."""

    def __init__(self, config: ZOSettings) -> None:
        pass

    def perturbations(self, seed: int, eps: float) -> list[Perturbation]:
        return [Perturbation(seed, eps), Perturbation(seed, -eps)]

    def estimate(
        self, perturbations: Sequence[Perturbation], losses: Sequence[float], eps: float
    ) -> list[Estimate]:
        plus, minus = losses
        return [Estimate(perturbations[0].seed, (plus - minus) / (2 * eps))]

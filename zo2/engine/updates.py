"""Updates that are decided but not yet written into the stored weights.

What a step decides is tiny: seeds, coefficients, and a decay. Applied to weights, several are

    W_t = (prod_k a_k) W_0 + sum_k (prod_{j > k} a_j) sum_i c_ki z(seed_ki),     a_k = 1 - decay_k

summed in float32. The list is a few bytes per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """One step's update W <- (1 - decay) W + sum_i coefficient_i z(seed_i).

    Attributes:
        terms: (seed, coefficient) pairs; the coefficient includes -lr.
        decay: lr * weight decay, for the weights that are decayed.
        rounding_seed: names the random bits that round the result to half precision.
    """

    terms: tuple[tuple[int, float], ...]
    decay: float
    rounding_seed: int


Round = tuple[Update, ...]  # applied as one, and rounded once


@dataclass(frozen=True)
class Affine:
    """Several updates as one: W <- scale * W + sum_k coefficient_k z(seed_k)."""

    scale: float = 1.0
    terms: tuple[tuple[int, float], ...] = ()
    rounding_seed: int = 0

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and not self.terms


def compose(updates: Sequence[Update], decayed: bool) -> Affine:
    """The effect of ``updates``, oldest first, on a weight that is decayed or not."""
    scale = 1.0
    terms: list[tuple[int, float]] = []
    for update in reversed(updates):
        terms[:0] = [(seed, coefficient * scale) for seed, coefficient in update.terms]
        if decayed:
            scale *= 1.0 - update.decay
    return Affine(scale, tuple(terms), updates[-1].rounding_seed if updates else 0)

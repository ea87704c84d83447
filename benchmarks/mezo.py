"""MeZO with all weights on the GPU and z drawn four times by torch.normal: a yardstick.

Seeds restart the GPU's generator, so each draw of a step is the same z. `PUBLISHED` multiplies in
the order in which the method's authors write it, each product a tensor of its own; `LEAN` makes
one factor of the numbers first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Arithmetic:
    """How weights move along z.

    Attributes:
        perturb: weights, z, side (1 or -2) and eps to perturbed weights.
        update: weights, z, projected gradient and learning rate to updated weights.
    """

    perturb: Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]
    update: Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]


PUBLISHED = Arithmetic(
    perturb=lambda weights, z, side, eps: weights + side * z * eps,
    update=lambda weights, z, gradient, lr: weights - lr * (gradient * z),
)
LEAN = Arithmetic(
    perturb=lambda weights, z, side, eps: weights + (side * eps) * z,
    update=lambda weights, z, gradient, lr: weights + (-lr * gradient) * z,
)
ARITHMETICS = {"published": PUBLISHED, "lean": LEAN}


@torch.no_grad()
def step(
    model: Any, batch: dict[str, torch.Tensor], arithmetic: Arithmetic, lr: float, eps: float
) -> float:
    parameters = list(model.parameters())

    def move(by: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        torch.manual_seed(1)
        for parameter in parameters:
            z = torch.normal(
                0.0, 1.0, size=parameter.shape, device=parameter.device, dtype=parameter.dtype
            )
            parameter.data = by(parameter.data, z)

    move(lambda weights, z: arithmetic.perturb(weights, z, 1.0, eps))
    plus = model(**batch, use_cache=False).loss
    move(lambda weights, z: arithmetic.perturb(weights, z, -2.0, eps))
    minus = model(**batch, use_cache=False).loss
    gradient = float((plus - minus).item()) / (2 * eps)
    move(lambda weights, z: arithmetic.perturb(weights, z, 1.0, eps))
    move(lambda weights, z: arithmetic.update(weights, z, gradient, lr))
    return float(plus)

"""A new method and a new family of directions are one small class each, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import zo2
from tests.test_engine import CPU, direction, toy, toy_batch, toy_losses
from zo2.config import ZOSettings
from zo2.directions import Family, register
from zo2.directions.streams import fill_signs
from zo2.directions.words import Purpose
from zo2.methods import Estimate, Perturbation
from zo2.methods import register as register_method


@register("test-lazy")
class Lazy(Family):
    """Scaled signs, zero for three elements of four: mean 0 and variance 1."""

    def fill(self, out, seed, parameter, start):
        fill_signs(out, seed, parameter.index, Purpose.SIGN, start)
        at = torch.arange(start, start + out.numel(), device=out.device)
        out.mul_(2.0 * ((at + seed) % 4 == 0))


@dataclass
class MeanConfig(ZOSettings):
    count: int = 3


@register_method("test-mean", MeanConfig)
class Mean:
    """The mean of several two-sided estimates."""

    def __init__(self, config):
        self.count = config.count

    def perturbations(self, seed, eps):
        return [Perturbation(seed + i, sign * eps) for i in range(self.count) for sign in (1, -1)]

    def estimate(self, perturbations, losses, eps):
        pairs = zip(perturbations[::2], losses[::2], losses[1::2], strict=True)
        return [Estimate(p.seed, (a - b) / (2 * eps * self.count)) for p, a, b in pairs]


@pytest.mark.parametrize("family", ["test-lazy", "gaussian"])
def test_a_method_and_a_family_of_ones_own(family):
    model = toy()
    config = zo2.ZOConfig("test-mean", count=2, direction=family, lr=1e-2, weight_decay=0.0, **CPU)
    reference = toy()
    zo2.prepare(model, config)
    one, seed = toy_batch(), model.opt.step_seed
    returned = model(**one).item()
    expected = {name: p.detach().double() for name, p in reference.named_parameters()}
    for i in range(2):
        plus, minus = toy_losses(reference, one, seed + i, [1e-3, -1e-3], family)
        z = direction(reference, seed + i, family)
        for name in expected:
            expected[name] = expected[name] - 1e-2 * (plus - minus) / 4e-3 * z[name].double()
        if i == 0:
            assert returned == plus
    for name, value in model.state_dict().items():
        assert (value.double() - expected[name]).abs().max() < 1e-6, name
    assert len(model.opt.projected_grad) == 2


def test_settings_of_the_method_are_checked_like_the_common_ones():
    with pytest.raises(zo2.ConfigError, match="Did you mean 'count'"):
        zo2.ZOConfig("test-mean", counts=3)

"""Zeroth-order steps written as plainly as can be: whole weights, separate forwards, no engine."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zo2.directions import ParameterShape, get_family
from zo2.directions.seeds import child_seed


def direction(model: nn.Module, seed: int, family: str = "gaussian") -> dict[str, torch.Tensor]:
    """Z for every parameter of ``model``, float32, by name."""
    z = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        flat = torch.empty(parameter.numel(), dtype=torch.float32)
        get_family(family).fill(flat, seed, ParameterShape(index, tuple(parameter.shape)), 0)
        z[name] = flat.view(parameter.shape)
    return z


def is_decayed(model: nn.Module, name: str) -> bool:
    """Weight decay skips vectors, biases and what belongs to a norm."""
    owner, _, last = name.rpartition(".")
    kind = type(model.get_submodule(owner)).__name__
    parameter = model.get_parameter(name)
    return parameter.dim() >= 2 and "bias" not in last and "norm" not in kind.lower()


@torch.no_grad()
def perturbed_loss(
    model: nn.Module, batch: Mapping[str, Any], scale: float, z: Mapping[str, torch.Tensor]
) -> float:
    """The loss of a copy of ``model`` whose weights are W + scale * z, by one plain forward.

    It asks for no key-value cache, like a training step: some models round differently with one.
    """
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(parameter.float() + z[name] * scale)
    if "use_cache" in inspect.signature(other.forward).parameters:
        batch = {"use_cache": False, **batch}
    return float(other(**batch).loss)


@torch.no_grad()
def naive_mezo(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    lr: float = 1e-3,
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    family: str = "gaussian",
    steps: int | None = None,
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Train a copy of ``model`` by MeZO, one batch per step (again from the first if they end).

    Returns:
        The losses (at W + eps z, at W - eps z) of every step, and the weights after the last.
    """
    model = copy.deepcopy(model)
    losses = []
    for step in range(len(batches) if steps is None else steps):
        batch = batches[step % len(batches)]
        z = direction(model, child_seed(seed, step), family)
        plus = perturbed_loss(model, batch, eps, z)
        minus = perturbed_loss(model, batch, -eps, z)
        losses.append((plus, minus))
        gradient = (plus - minus) / (2 * eps)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                keep = 1 - lr * weight_decay if is_decayed(model, name) else 1.0
                parameter.copy_(parameter.float() * keep + z[name] * (-lr * gradient))
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}

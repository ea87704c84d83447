"""Golden tests: the engine against steps written as plainly as can be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from verify.probes import tiny

_EPS = 1e-3
_SEED = 7


def lockstep(options: Mapping[str, Any]) -> dict[str, Any]:
    """Losses of the passes of a step, and of plain forwards of perturbed copies."""
    found = {}
    for name in _families():
        model = tiny.model(name)
        batch = tiny.batch(model)
        z = _direction(model, 0)
        plain = [_plain_loss(model, batch, scale, z) for scale in (_EPS, -_EPS)]
        found[name] = {"engine": _one_step(model, batch, lr=0.0)[0], "plain": plain}
    return {"losses": found}


def estimator(options: Mapping[str, Any]) -> dict[str, Any]:
    """The projected gradient, beside differences and autograd's gradient, both in float64."""
    import torch

    found = {}
    for name in _families():
        model = tiny.model(name)
        batch = tiny.batch(model)
        z = _direction(model, 0)
        exact = copy.deepcopy(model).double()
        gradients = torch.autograd.grad(_exact_loss(exact, batch), list(exact.parameters()))
        pairs = zip(exact.named_parameters(), gradients, strict=True)

        def difference(h: float, exact: Any = exact, batch: Any = batch, z: Any = z) -> float:
            sides = [_moved(exact, scale, z) for scale in (h, -h)]
            with torch.no_grad():
                plus, minus = (_exact_loss(side, batch).item() for side in sides)
            return float(plus - minus) / (2 * h)

        found[name] = {
            "engine": _one_step(model, batch, lr=0.0)[1],
            "same_eps": difference(_EPS),
            "small_eps": difference(1e-6),
            "autograd": sum((g * z[n].double()).sum().item() for (n, _), g in pairs),
        }
    return {"gradients": found}


def _exact_loss(model: Any, batch: Any) -> Any:
    """The loss in float64; transformers' own works in float32."""
    from torch.nn.functional import cross_entropy

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits.double()
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def step(options: Mapping[str, Any]) -> dict[str, Any]:
    """Weights after two steps, beside those of plain arithmetic."""
    import torch

    found = {}
    for name in _families():
        model = tiny.model(name)
        batch = tiny.batch(model)
        expected = _plain_steps(model, batch, lr=1e-2, steps=2)
        _, _, weights = _one_step(model, batch, lr=1e-2, steps=2)
        found[name] = [n for n, value in expected.items() if not torch.equal(value, weights[n])]
    return {"different": found}


def parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """How many parameters a model has before, while and after it is prepared, and how many move."""
    import torch

    import zo2

    found = {}
    for name in _families():
        model = tiny.model(name)
        names = {n: p.detach().clone() for n, p in model.named_parameters()}
        count = [sum(p.numel() for p in model.parameters())]
        zo2.prepare(model, zo2.ZOConfig(working_device="cpu", seed=_SEED, lr=1e-2))
        model(**tiny.batch(model))
        held = sum(w.parameter.numel() for unit in model._zo.engine.units for w in unit.weights)
        count += [sum(p.numel() for p in model.parameters()), held]
        model = zo2.release(model)
        count.append(sum(p.numel() for p in model.parameters()))
        same = [n for n, p in model.named_parameters() if torch.equal(names[n], p)]
        found[name] = {"counts": count, "unmoved": same}
    return {"families": found}


def _families() -> list[str]:
    return [name for name in tiny.FAMILIES if not tiny.lacks(name)]


def _one_step(
    model: Any, batch: Any, lr: float, steps: int = 1
) -> tuple[list[float], float, dict[str, Any]]:
    """(losses of the last step's passes, its projected gradient, the weights) of the engine."""
    import zo2

    model = copy.deepcopy(model)
    config = zo2.ZOConfig(working_device="cpu", lr=lr, eps=_EPS, weight_decay=0.1, seed=_SEED)
    zo2.prepare(model, config)
    method = model._zo.method
    estimate, seen = method.estimate, []

    def watched(perturbations: Any, losses: Any, eps: float) -> Any:
        seen.append(list(losses))
        return estimate(perturbations, losses, eps)

    method.estimate = watched
    for _ in range(steps):
        model(**batch)
    gradient = model.opt.projected_grad
    weights = {name: p.detach().clone() for name, p in zo2.release(model).named_parameters()}
    return seen[-1], gradient, weights


def _direction(model: Any, step: int) -> dict[str, Any]:
    """The direction z of a step, float32, by parameter."""
    import torch

    from zo2.directions import ParameterShape, get_family
    from zo2.directions.seeds import child_seed

    z = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        flat = torch.empty(parameter.numel())
        shape = ParameterShape(index, tuple(parameter.shape))
        get_family("gaussian").fill(flat, child_seed(_SEED, step), shape, 0)
        z[name] = flat.view(parameter.shape)
    return z


def _moved(model: Any, scale: float, z: Mapping[str, Any]) -> Any:
    """A copy whose weights are W + scale z."""
    import torch

    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(parameter + z[name].to(parameter.dtype) * scale)
    return other


def _plain_loss(model: Any, batch: Any, scale: float, z: Mapping[str, Any]) -> float:
    """The loss of a plain forward at W + scale z."""
    import torch

    with torch.no_grad():
        return float(_moved(model, scale, z)(**batch, use_cache=False).loss)


def _plain_steps(model: Any, batch: Any, lr: float, steps: int) -> dict[str, Any]:
    """Weights after MeZO steps with weight decay of matrices that belong to no norm."""
    import torch

    model = copy.deepcopy(model)
    for number in range(steps):
        z = _direction(model, number)
        plus, minus = (_plain_loss(model, batch, scale, z) for scale in (_EPS, -_EPS))
        gradient = (plus - minus) / (2 * _EPS)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                keep = 1 - lr * 0.1 if parameter.dim() >= 2 and "norm" not in name else 1.0
                parameter.copy_(parameter * keep + z[name] * (-lr * gradient))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


PROBES = {
    "parity.lockstep": lockstep,
    "parity.estimator": estimator,
    "parity.step": step,
    "parity.parameters": parameters,
}

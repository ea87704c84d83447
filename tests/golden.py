"""The same training of tiny models in different environments, and how far the results differ.

    python -m tests.golden record FOLDER            train, and keep losses and weights
    python -m tests.golden compare FOLDER FOLDER... print the differences of the last as JSON

Weights are written from zo2's own counter-based generator, by name, so that neither torch's
generator nor an initialisation that changed between releases can make a difference.

Each family is compared with the first folder in which its weights have the same names and shapes:
the same seed is another direction where a release stacks experts into one tensor. If none has,
the first folder's checkpoint is loaded by this release and the losses of plain forwards compared.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zo2
from tests.tiny import FAMILIES, tiny
from zo2.directions import ParameterShape, get_family

SCALE = 0.1
STEPS = 3
TEXT = torch.arange(3, 51).reshape(3, 16)  # three sentences of sixteen tokens


def fill(model: torch.nn.Module) -> None:
    """Give every parameter values that depend on its name and shape only."""
    family = get_family("gaussian")
    for name, parameter in model.named_parameters():
        values = torch.empty(parameter.numel())
        shape = ParameterShape(0, tuple(parameter.shape))
        family.fill(values, zlib.crc32(name.encode()), shape, 0)
        parameter.data.copy_(SCALE * values.view(parameter.shape))


@torch.no_grad()
def plain_loss(model: Any) -> float:
    """The loss of one forward as transformers does it, without a key-value cache."""
    return float(model(input_ids=TEXT, labels=TEXT, use_cache=False).loss)


def train(model: Any) -> list[float]:
    """Take three MeZO steps; the losses of both sides of each."""
    losses: list[float] = []

    def collect(model: Any, loss: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
        losses.append(float(loss))
        return (loss, *rest)

    zo2.prepare(model, zo2.ZOConfig(lr=1e-2, eps=1e-3, weight_decay=0.01, seed=7))
    model.register_zo_train_loss_fn_post_hook(collect)
    for _ in range(STEPS):
        model(input_ids=TEXT, labels=TEXT)
    zo2.release(model)
    return losses


def record(folder: Path) -> None:
    """Train every family that the installed transformers has, and write what came out."""
    losses: dict[str, list[float]] = {}
    for family in FAMILIES:
        try:
            model = tiny(family)
        except pytest.skip.Exception:
            continue
        fill(model)
        model.save_pretrained(folder / family)
        losses[family] = [plain_loss(model), *train(model)]
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        save_file(weights, folder / family / "trained.safetensors")
    (folder / "losses.json").write_text(json.dumps(losses))


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """By family, relative differences of the last folder: plain loss, training losses, weights."""
    *others, mine = folders
    found = {}
    for family, losses in _losses(mine).items():
        known = [other for other in others if family in _losses(other)]
        weights = load_file(mine / family / "trained.safetensors")
        for other in known:
            theirs = load_file(other / family / "trained.safetensors")
            if {n: w.shape for n, w in theirs.items()} == {n: w.shape for n, w in weights.items()}:
                apart_by = [
                    abs(a - b) / abs(b) for a, b in zip(losses, _losses(other)[family], strict=True)
                ]
                largest = max(float(w.abs().max()) for w in theirs.values())
                apart = max(float((weights[name] - w).abs().max()) for name, w in theirs.items())
                found[family] = {
                    "against": other.name,
                    "plain": apart_by[0],
                    "losses": max(apart_by[1:]),
                    "weights": apart / largest,
                }
                break
        else:
            if known:
                model = type(tiny(family)).from_pretrained(known[0] / family).eval()
                expected = _losses(known[0])[family][0]
                loss = abs(plain_loss(model) - expected) / abs(expected)
                found[family] = {
                    "against": known[0].name,
                    "plain": loss,
                    "losses": None,
                    "weights": None,
                }
            else:
                found[family] = {"against": None, "plain": None, "losses": None, "weights": None}
    return found


def _losses(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / "losses.json").read_text())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *folders = sys.argv[1:]
    if command == "record":
        record(Path(folders[0]))
    else:
        print(json.dumps(compare([Path(folder) for folder in folders])))

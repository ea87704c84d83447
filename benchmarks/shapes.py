"""Models of published shapes with random weights, made without ever holding them twice."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

from benchmarks import sharing
from zo2 import planning
from zo2.shapes import SHAPES


def empty(name: str, dtype: str, layers: int | None = None, in_host: int | None = None) -> Any:
    """The model with memory that is reserved but not written to, so that it takes none yet.

    Args:
        name: one of `zo2.shapes.SHAPES`.
        dtype: precision of its weights.
        layers: of an OPT shape, fewer than it has.
        in_host: of an OPT shape, how many layers have memory of their own; see `sharing`.
    """
    config = SHAPES[name]()
    model = planning.without_weights(config, dtype)
    if layers is not None:
        del model.model.decoder.layers[layers:]
    more = list(model.model.decoder.layers[in_host:]) if in_host else []
    if more:
        del model.model.decoder.layers[in_host:]
    model = model.to_empty(device="cpu")
    model.tie_weights()
    _set_buffers(model, config)
    if more:
        sharing.append(model.model.decoder.layers, more)
    return model.eval()


def _set_buffers(model: Any, config: Any) -> None:
    """Give a model the numbers that it computes when it is made, such as those of its positions."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = 1, 8
    computed = dict(transformers.AutoModelForCausalLM.from_config(small).named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(computed[name])


@torch.no_grad()
def fill(model: Any, std: float = 0.02) -> None:
    """Give a model, prepared or not, random matrices, and vectors that keep activations sane."""
    sample = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(std)
    samples: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    filled: set[int] = set()  # layers may share memory (benchmarks.sharing)
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        if flat.data_ptr() in filled:
            continue
        filled.add(flat.data_ptr())
        if parameter.dim() < 2:
            flat.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        key = flat.dtype, flat.device
        if key not in samples:
            samples[key] = sample.to(*key[::-1])
        for start in range(0, flat.numel(), sample.numel()):
            part = flat[start : start + sample.numel()]
            part.copy_(samples[key][: part.numel()])

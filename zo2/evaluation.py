"""How well a model names the labels of texts.

A label's score is the log likelihood of its word after the prompt, summed over the word's
tokens: the probability of the whole word. The highest score is the model's answer, and the loss
is the mean negative log of the right label's share, with the label words alone as a choice (a
softmax over the scores).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from zo2.data import IGNORED, Question, choice_batch, parts

BATCH = 32  # questions whose forwards run at once
LOGITS_BYTES = 2**30  # logits that one sweep may leave on the device


@dataclass(frozen=True)
class Score:
    """An evaluation.

    Attributes:
        accuracy: share of the examples whose right label scored highest, 0 to 1.
        loss: mean negative log likelihood of the right label among the labels, in nats.
        count: number of examples.
    """

    accuracy: float
    loss: float
    count: int


def scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log P(label word | prompt) of every choice.

    Args:
        logits: [rows, length, vocabulary].
        labels: of a `zo2.data.choice_batch`: [questions, choices, longest word, 3].

    Returns:
        [questions, choices], float32, in nats; the right choice comes first.
    """
    row, place, token = labels.clamp(min=0).unbind(-1)
    given = logits[row, place].float().log_softmax(-1).gather(-1, token[..., None])[..., 0]
    return given.masked_fill(labels[..., 0] == IGNORED, 0.0).sum(-1)


def choice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of the right label among the labels: no dimensions."""
    found = scores(logits, labels)
    return functional.cross_entropy(found, found.new_zeros(len(found), dtype=torch.int64))


def evaluate(model: Any, questions: Sequence[Question], pad: int) -> Score:
    """Ask a prepared model every question, with the weights streamed as seldom as can be.

    Args:
        model: a prepared causal language model; its mode is left as it was.
        questions: prompts with each label word, the right one first.
        pad: token id to pad with.
    """
    batches = [choice_batch(part, pad) for part in parts(questions, -(-len(questions) // BATCH))]
    vocabulary = int(getattr(model.config, "vocab_size", None) or 50_000)
    was_training = model.zo_training
    model.zo_eval()
    try:
        found = []
        for sweep in _sweeps(batches, 4 * vocabulary):
            outputs = model.zo_forward([_inputs(model, batch) for batch in sweep])
            for batch, output in zip(sweep, outputs, strict=True):
                found.append(scores(output.logits, batch["labels"].to(output.logits.device)))
    finally:
        if was_training:
            model.zo_train()
    every = torch.cat(found).cpu()
    hits = every[:, 0] > every[:, 1:].amax(-1)
    loss = functional.cross_entropy(every, torch.zeros(len(every), dtype=torch.int64))
    return Score(hits.float().mean().item(), loss.item(), len(every))


def _inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    return {**inputs, **({"use_cache": False} if takes_cache else {})}


def _sweeps(
    batches: Sequence[dict[str, Any]], bytes_per_token: int
) -> Iterator[list[dict[str, Any]]]:
    """Batches in sweeps whose logits fit in memory."""
    sweep: list[dict[str, Any]] = []
    used = 0
    for batch in batches:
        size = batch["input_ids"].numel() * bytes_per_token
        if sweep and used + size > LOGITS_BYTES:
            yield sweep
            sweep, used = [], 0
        sweep.append(batch)
        used += size
    yield sweep

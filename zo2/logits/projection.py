"""The product of hidden states and a head's weights, some columns at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from zo2.engine.vocabulary import Rows
from zo2.logits import crossentropy


@dataclass(frozen=True)
class Projection:
    """What a head does to hidden states.

    Attributes:
        weight: some rows of its weights (vocabulary, hidden size).
        bias: (vocabulary,) or none.
        vocabulary: number of rows.
        most: rows that may be asked for at once.
    """

    weight: Rows
    bias: torch.Tensor | None
    vocabulary: int
    most: int

    def part(self, columns: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes at most ``most`` columns of the logits of hidden states (..., hidden size);
        until it is asked for another one.
        """
        bias = None if self.bias is None else self.bias[columns]
        return functools.partial(F.linear, weight=self.weight(columns), bias=bias)

    def all(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of ``hidden`` (..., hidden size)."""
        parts = crossentropy.slices(self.vocabulary, self.most)
        logits = self.part(parts[0])(hidden)
        if len(parts) > 1:
            some, logits = logits, logits.new_empty(*hidden.shape[:-1], self.vocabulary)
            logits[..., parts[0]] = some
            for columns in parts[1:]:
                logits[..., columns] = self.part(columns)(hidden)
        return logits

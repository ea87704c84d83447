"""A model's head as an engine's passes call it: with some rows of its weights at a time."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from zo2.engine.vocabulary import Rows, rows_of_part
from zo2.logits import crossentropy
from zo2.logits.projection import Projection
from zo2.logits.standin import Logits


class Head:
    """A model's head, whose weights may be had by some rows at a time only.

    Args:
        module: its output embeddings, if it has any.
        rows_of: the rows of the module's weights for the pass that runs it now; none if its
            parameter has them.

    Attributes:
        module: as given if it is a linear layer; anything else is left alone.
    """

    def __init__(
        self,
        module: nn.Module | None,
        rows_of: Callable[[nn.Module], Rows | None] = lambda module: None,
    ) -> None:
        self.module = module if type(module) is nn.Linear else None
        self._rows_of = rows_of
        self._live: list[weakref.ref[Logits]] = []

    @classmethod
    def of(
        cls,
        model: nn.Module,
        rows_of: Callable[[nn.Module], Rows | None] = lambda module: None,
    ) -> Head:
        """The head of ``model``, if it says which of its modules that is."""
        find: Callable[[], Any] = getattr(model, "get_output_embeddings", lambda: None)
        return cls(find(), rows_of)

    def returning_stand_ins(self) -> contextlib.AbstractContextManager[None]:
        """Within this context, calls of the head return `Logits` where that saves memory."""

        def forward(hidden: torch.Tensor) -> Any:
            logits = self._logits(hidden)
            size = 4 * hidden.numel() // hidden.shape[-1] * logits.shape[-1]
            mixed = hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type)
            return logits.whole() if size <= crossentropy.CHUNK or mixed else logits

        return self._calling(forward)

    def returning_tensors(self) -> contextlib.AbstractContextManager[None]:
        """Within this context, calls of the head return logits, but need some rows at a time."""

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            return self._logits(hidden).whole()

        return self._calling(forward)

    def _logits(self, hidden: torch.Tensor) -> Logits:
        assert self.module is not None
        weight = self.module.weight.detach()
        rows = self._rows_of(self.module) or weight.__getitem__
        bias = None if self.module.bias is None else self.module.bias.detach()
        most = rows_of_part(weight[0].nbytes)
        return Logits(hidden, Projection(rows, bias, len(weight), most), self._live)

    @contextlib.contextmanager
    def _calling(self, forward: Callable[[torch.Tensor], Any]) -> Iterator[None]:
        if self.module is None or "forward" in self.module.__dict__:  # as it is set, or others do
            yield
            return
        forward.asks_for_rows = True  # type: ignore[attr-defined]
        self.module.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.module.forward

    def stray(self, labels: Sequence[torch.Tensor]) -> int | None:
        """A label that is no word of the head's and not -100; none if all are, or it is unknown."""
        if self.module is None:
            return None
        words = self.module.out_features
        odd = [one[(one != -100) & ((one < 0) | (one >= words))] for one in labels]
        return next((int(some[0]) for some in odd if some.numel()), None)

    def compute_all(self) -> None:
        """Compute what stand-ins still stand for: their weights are about to be replaced."""
        for reference in self._live:
            if (logits := reference()) is not None:
                logits.whole()
        self._live.clear()

"""Whole sweeps as CUDA graphs, for models that are too small to keep a GPU busy from Python.

A sweep over resident weights launches the same kernels each time; only inputs, seeds and
coefficients differ, and these lie in device memory. So the second sweep of a kind is captured and
later ones are replayed. In a graph passes go side by side, unless the model writes to its buffers,
which passes share. A forward that asks the device for values cannot be captured and goes on as
before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zo2.engine.abreast import Abreast, Formation, InFile
from zo2.engine.capturing import CaptureError, CudaCapture, Replay
from zo2.engine.engine import Engine
from zo2.engine.fused import FusedArithmetic
from zo2.engine.streams import stream
from zo2.methods import Perturbation

logger = logging.getLogger("zo2")

Batch = Mapping[str, Any]
ABREAST = 4  # passes that go side by side
LARGEST_NUMBER = 256  # of graphs; each has a kind of its own (batch shapes, pending updates)


@dataclass(frozen=True)
class Captured:
    """A sweep as a graph: what it reads and what it leaves."""

    replay: Replay
    inputs: list[torch.Tensor]
    result: torch.Tensor


class Replays:
    """The captured sweeps of one engine.

    Args:
        engine: on a CUDA device; while it streams weights, sweeps run as they are.
        arithmetic: the engine's.
    """

    def __init__(self, engine: Engine, arithmetic: FusedArithmetic) -> None:
        self._engine, self._arithmetic = engine, arithmetic
        self._captured = CudaCapture(engine.device)
        self._streams = [stream(engine.device, f"pass {index}") for index in range(ABREAST)]
        # of each kind that was seen once: its graph, how its passes will go in one, or that it
        # cannot be one
        self._kinds: dict[Hashable, Captured | Formation | None] = {}
        self._placements = engine.placements  # when these were captured

    def run(
        self,
        batches: Sequence[Batch],
        perturbations: Sequence[Perturbation],
        sweep: Callable[[Sequence[Batch]], torch.Tensor],
    ) -> torch.Tensor:
        """The result of ``sweep(batches)``, by a graph from its kind's second time on.

        Args:
            batches: keyword arguments of the model's forward, on the device.
            perturbations: of the sweep's passes.
            sweep: runs the passes of these batches over the engine's weights.
        """
        stay = self._engine.is_in_place() and not self._engine.streams
        if not stay or self._placements != self._engine.placements:
            self._kinds.clear()
            self._placements = self._engine.placements
            return sweep(batches)
        if self._engine.pending.rounds:  # left by a sweep that failed
            return sweep(batches)
        kind = self._kind(batches, len(perturbations))
        if kind not in self._kinds:
            return self._first(kind, batches, sweep)
        known = self._kinds[kind]
        if known is None:
            return sweep(batches)
        self._arithmetic.load(self._engine.changes_of_sweep(perturbations))
        if isinstance(known, Captured):
            for place, value in zip(known.inputs, _tensors(batches), strict=True):
                place.copy_(value)
            self._engine.has_swept()
        else:
            known = self._kinds[kind] = self._capture(batches, sweep, known)
            if known is None:
                return sweep(batches)
        known.replay()
        return known.result

    def _first(
        self,
        kind: Hashable,
        batches: Sequence[Batch],
        sweep: Callable[[Sequence[Batch]], torch.Tensor],
    ) -> torch.Tensor:
        """A sweep of a new kind, and how its passes can go in a graph."""
        before = self._versions()
        result = sweep(batches)
        if len(self._kinds) < LARGEST_NUMBER:
            shared = before != self._versions()
            self._kinds[kind] = InFile() if shared else Abreast(self._streams)
        return result

    def _versions(self) -> list[int]:
        """How often each buffer of the model was written to."""
        return [buffer._version for buffer in self._engine.model.buffers()]

    def _kind(self, batches: Sequence[Batch], perturbations: int) -> Hashable:
        described = tuple(
            (name, (value.shape, value.dtype) if isinstance(value, torch.Tensor) else repr(value))
            for batch in batches
            for name, value in batch.items()
        )
        return described, perturbations, self._engine.kind_of_sweep()

    def _capture(
        self,
        batches: Sequence[Batch],
        sweep: Callable[[Sequence[Batch]], torch.Tensor],
        formation: Formation,
    ) -> Captured | None:
        own = [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            for batch in batches
        ]
        results: list[torch.Tensor] = []
        pending = self._engine.pending.copy()
        self._engine.formation = formation
        try:
            replay = self._captured(lambda: results.append(sweep(own)))
        except CaptureError as error:
            self._engine.pending = pending  # that sweep was not carried out
            logger.warning("This model's passes cannot be a CUDA graph (%s).", str(error))
            return None
        finally:
            self._engine.formation = InFile()
        return Captured(replay, _tensors(own), results[0])


def _tensors(batches: Sequence[Batch]) -> list[torch.Tensor]:
    return [
        value for batch in batches for value in batch.values() if isinstance(value, torch.Tensor)
    ]

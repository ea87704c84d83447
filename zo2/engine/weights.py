"""Arithmetic on weights: apply updates in place, write perturbed copies out of place.

Everything is computed in float32, chunk by chunk so that z never exists whole, and rounded once
to the weights' precision. One rounding per multiplication and per addition: the result does not
depend on the device, on how weights are grouped, or on where a chunk ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from zo2.directions import Family, ParameterShape
from zo2.directions.streams import fill_halves
from zo2.directions.words import Purpose
from zo2.engine.store import Layout
from zo2.engine.updates import Affine, Round, compose
from zo2.methods import Perturbation

# Elements of a chunk. On a CPU, z and the weights of a chunk stay in the second-level cache; on a
# GPU a chunk is large enough to fill it, and what a chunk needs beside the weights stays small.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
SMALLEST_NORMAL = 2.0**-14  # of float16, without those below that have fewer digits


@dataclass(frozen=True)
class Changes:
    """What a sweep does to weights.

    Attributes:
        rounds: of updates, oldest first; the weights are rounded after each.
        open: updates of no round yet: weights with these are not rounded before they are
            perturbed, and not stored.
        perturbations: of the sweep's passes; they apply to the updated weights.
    """

    rounds: tuple[Round, ...] = ()
    open: Round = ()
    perturbations: tuple[Perturbation, ...] = ()


class Arithmetic(Protocol):
    """How a unit's weights are updated and perturbed."""

    def transform(
        self,
        layout: Layout,
        base: torch.Tensor,
        changes: Changes,
        held: int,
        write: bool,
        targets: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Update a unit's trainable weights and write perturbed copies of them.

        Args:
            layout: where the weights lie in the flat buffers.
            base: the unit's weights, 1-D uint8.
            changes: what to apply.
            held: how many of the rounds ``base`` has.
            write: whether the weights after the last round replace ``base``.
            targets: (index of a perturbation, 1-D uint8 buffer for its copy) pairs. Frozen
                weights, which lie behind the others, are left out of the copies.
        """
        ...


class TorchArithmetic:
    """The operations on weights in plain torch, for any device and family.

    Args:
        family: the directions z.
        stochastic_rounding: how `apply` rounds half-precision results.
    """

    def __init__(self, family: Family, stochastic_rounding: bool) -> None:
        self.family = family
        self.stochastic_rounding = stochastic_rounding
        self._buffers: dict[tuple[str, torch.device], torch.Tensor] = {}

    def _buffer(self, use: str, like: torch.Tensor) -> torch.Tensor:
        """A float32 buffer as long as ``like``, the same memory for every chunk: fresh pages
        would cost more than the arithmetic.
        """
        key = use, like.device
        if key not in self._buffers or self._buffers[key].numel() < like.numel():
            self._buffers[key] = torch.empty(like.numel(), dtype=torch.float32, device=like.device)
        return self._buffers[key][: like.numel()]

    def transform(
        self,
        layout: Layout,
        base: torch.Tensor,
        changes: Changes,
        held: int,
        write: bool,
        targets: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        lacking = changes.rounds[held:]
        perturbations = [changes.perturbations[index] for index, _ in targets]
        tensors = layout.views(base)
        copies = [layout.copies(flat, tensors) for _, flat in targets]
        trained = [k for k, is_trained in enumerate(layout.trains) if is_trained]
        # the largest first: should memory run out, it does before any weight has changed
        trained.sort(key=lambda k: -tensors[k].numel())
        if write and trained:
            largest = tensors[trained[0]].view(-1)[: CHUNK[base.device.type]]
            for use in ("weights", "z", "step"):
                self._buffer(use, largest)
        for k in trained:
            weight, tensor = layout.weights[k], tensors[k]
            outs = [views[k] for views in copies]
            if lacking and not write:
                tensor = outs[-1].copy_(tensor)  # the last one to be perturbed
            for updates in lacking:
                self.apply(tensor, weight.shape, compose(updates, weight.decayed))
            if targets:
                update = compose(changes.open, weight.decayed)
                self.perturb(tensor, weight.shape, update, perturbations, outs)

    def apply(self, base: torch.Tensor, shape: ParameterShape, update: Affine) -> None:
        """``base <- round(scale * base + sum_k c_k z_k)``, in place.

        Args:
            base: contiguous weights, float32, bfloat16 or float16.
            shape: which parameter ``base`` is.
            update: what to apply; its rounding seed names the bits of stochastic rounding.
        """
        flat, chunk = base.view(-1), CHUNK[base.device.type]
        for start in range(0, flat.numel(), chunk):
            part = flat[start : start + chunk]
            result = self._updated(part, shape, start, update)
            if part.dtype == torch.float32:
                if result is not part:
                    part.copy_(result)
            elif self.stochastic_rounding:
                part.copy_(self._round(result, part.dtype, shape, start, update.rounding_seed))
            else:
                part.copy_(result)

    def perturb(
        self,
        base: torch.Tensor,
        shape: ParameterShape,
        pending: Affine,
        perturbations: Sequence[Perturbation],
        outs: Sequence[torch.Tensor],
    ) -> None:
        """``out_i <- round(pending(base) + scale_i * z(seed_i))`` for each perturbation.

        Perturbations of one seed that stand next to each other share one z. The last of ``outs``
        may be ``base``.
        """
        flat, flats = base.view(-1), [out.view(-1) for out in outs]
        chunk = CHUNK[base.device.type]
        for start in range(0, flat.numel(), chunk):
            part = flat[start : start + chunk]
            weights = self._updated(part, shape, start, pending, in_place=False)
            z = self._buffer("z", part)
            pairs = zip(perturbations, flats, strict=True)
            for seed, group in groupby(pairs, key=lambda pair: pair[0].seed):
                filled = False
                for perturbation, out in group:
                    target = out[start : start + chunk]
                    if perturbation.scale == 0.0:
                        target.copy_(weights)
                        continue
                    if not filled:
                        self.family.fill(z, seed, shape, start)
                        filled = True
                    step = torch.mul(z, perturbation.scale, out=self._buffer("step", part))
                    if target.dtype == torch.float32:
                        torch.add(weights, step, out=target)
                    else:
                        target.copy_(step.add_(weights))

    def _updated(
        self,
        part: torch.Tensor,
        shape: ParameterShape,
        start: int,
        update: Affine,
        in_place: bool = True,
    ) -> torch.Tensor:
        """The chunk in float32 with ``update`` applied; float32 chunks in place if allowed."""
        whole = part.dtype == torch.float32
        if whole and (in_place or update.is_identity):
            weights = part
        else:
            weights = self._buffer("weights", part).copy_(part)
        total = self._buffer("z", part)
        if update.terms:  # first, as it takes memory, and the weights may be changed in place
            self.family.accumulate(total, update.terms, shape, start)
        if update.scale != 1.0:
            weights.mul_(update.scale)
        if update.terms:
            weights.add_(total)
        return weights

    def _round(
        self,
        values: torch.Tensor,
        dtype: torch.dtype,
        shape: ParameterShape,
        start: int,
        seed: int,
    ) -> torch.Tensor:
        bits = torch.empty_like(values, dtype=torch.int32)
        fill_halves(bits, seed, shape.index, Purpose.ROUNDING, start)
        return round_stochastically(values, bits, dtype)


def round_stochastically(
    values: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Round float32 ``values`` to one of their two neighbours in ``dtype``, without bias.

    Random bits are added below the last place that is kept, and what lies below it is cut off,
    so a value goes up with a probability equal to its distance from the lower neighbour. Below
    2**-14 the numbers of float16 are as far apart as those from 2**-14 to 2**-13: magnitudes are
    moved there to be rounded.

    Args:
        values: float32, any shape.
        bits: int32, 16 random bits for each value.
        dtype: bfloat16 or float16.
    """
    mask = {torch.bfloat16: 0xFFFF, torch.float16: 0x1FFF}[dtype]
    size = values.abs()
    moved = ((size < SMALLEST_NORMAL) * SMALLEST_NORMAL) if dtype == torch.float16 else 0.0
    raw = (size + moved).view(torch.int32)
    rounded = ((raw + (bits & mask)) & ~mask).view(torch.float32) - moved
    rounded = torch.where(size < math.inf, torch.copysign(rounded, values), values)
    return rounded.to(dtype)

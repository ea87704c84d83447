"""Passes through embeddings and head, which give them rows instead of a copy of all.

Such a matrix may rest in host memory. There a GPU's kernels look rows up, and update it; what a
head is multiplied by, a part at a time, comes through the buffers of other streamed weights,
fetched ahead as these are. A part that was brought serves all passes, so each waits until the
others ask for it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F

from zo2.engine.abreast import Formation
from zo2.engine.lockstep import Pass
from zo2.engine.partition import Unit
from zo2.engine.pending import Pending
from zo2.engine.transfer import Part
from zo2.engine.vocabulary import (
    Matrix,
    Rows,
    Served,
    Vocabulary,
    part_of,
    parts_of,
    rows_within,
)  # fmt: skip
from zo2.engine.weights import Changes
from zo2.engine.workspace import Workspace
from zo2.methods import Perturbation


class Walk(Protocol):
    """What serving asks of the sweep that it belongs to, which is not kept: it would be in a cycle,
    with all that its passes hold.
    """

    def resume(self, one: Pass) -> None:
        """Take a pass to where it waits next."""
        ...

    def store(self, unit: Unit, base: torch.Tensor) -> None:
        """Let a unit's updated weights replace those that are stored, if they have yet to."""
        ...

    def copy_all(
        self, unit: Unit, base: torch.Tensor, perturbation: Perturbation
    ) -> Sequence[torch.Tensor]:
        """A perturbed copy of all, which nobody has planned for."""
        ...

    def following(self, unit: Unit) -> Iterator[Unit]:
        """What passes through buffers after a unit, in this sweep and then in the next one."""
        ...


class Serving:
    """Serves the passes of one sweep.

    Args:
        vocabulary: what can be served.
        workspace: where weights rest, and what parts of them pass through.
        pending: updates that not every stored weight has.
        changes: what the sweep does to weights.

    Attributes:
        expected: parts that passes are going to ask for, as they did in the sweep before.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        workspace: Workspace,
        pending: Pending,
        changes: Changes,
    ) -> None:
        self._vocabulary, self._workspace = vocabulary, workspace
        self._pending, self._changes = pending, changes
        self._store, self._stream = workspace.store, workspace.stream
        self.expected: list[Part] = []

    def begin(self, walk: Walk) -> None:
        """Update matrices in host memory that are due, before any part of them is fetched."""
        workspace = self._workspace
        if not workspace.by_rows:
            return
        for unit in workspace.by_rows:
            walk.store(unit, workspace.transfer(unit).acquire(unit))
        self._stream.forget_parts()
        self.expected = [
            part
            for unit, parts in workspace.asked.items()
            if not self._vocabulary.modules.isdisjoint(unit.modules)
            for part in parts
        ]

    def can_serve(self, unit: Unit, passes: Sequence[Pass]) -> bool:
        """Whether passes that are about to enter a unit can be given rows of what is stored."""
        return (
            all(one.calling in self._vocabulary.modules for one in passes)
            and unit not in self._workspace.copied
            and not self._pending.open
            and part_of(unit) <= self._workspace.scratch.numel()
        )

    def serve(self, unit: Unit, passes: Sequence[Pass], formation: Formation, walk: Walk) -> None:
        """Take passes through an embedding or a head, which is updated but not copied."""
        base, size = self._workspace.transfer(unit).acquire(unit), part_of(unit)
        walk.store(unit, base)
        [weight], layout = unit.weights, self._store.layouts[unit]
        matrix = Matrix(weight, layout, base, self._changes, self._pending.held(unit))
        at_once = min(self._workspace.scratch.numel() // size, len(passes))
        buffers = self._workspace.copies(0, at_once, size)
        try:
            if unit in self._workspace.by_rows:
                self._share(unit, matrix, passes, buffers, walk)
                return
            for first in range(0, len(passes), at_once):
                with formation.fork():
                    for one, buffer in zip(passes[first : first + at_once], buffers, strict=False):
                        self._enter(unit, matrix, one, self._alone(matrix, one, buffer), walk)
        finally:
            self._store.hide(unit)

    def _enter(self, unit: Unit, matrix: Matrix, one: Pass, part: Rows, walk: Walk) -> None:
        """Take a pass into the module of a matrix."""
        self._store.bind(unit, self._workspace.tensors(unit, matrix.base, matrix.base))
        one.bound = {unit}
        with self._vocabulary.serving(unit, self._served(unit, matrix, one, part, walk)):
            walk.resume(one)

    def _served(
        self, unit: Unit, matrix: Matrix, one: Pass, part: Rows, walk: Walk
    ) -> Served | None:
        """What gives a pass rows, where they are not as they are stored on the device."""
        trained = matrix.weight.trainable
        as_stored = not trained or not (one.perturbation.scale or matrix.rounds_lacking)
        if as_stored and unit not in self._workspace.by_rows:
            return None
        index = self._changes.perturbations.index(one.perturbation)
        look_up = partial(self._vocabulary.arithmetic.look_up, matrix, index)
        if not trained:
            [stored] = self._workspace.tensors(unit, matrix.base, matrix.base)
            look_up = partial(F.embedding, weight=stored)

        def bind() -> None:
            copy = walk.copy_all(unit, matrix.base, one.perturbation)
            self._store.bind(unit, copy)

        return Served(look_up, part, bind)

    def _alone(self, matrix: Matrix, one: Pass, buffer: torch.Tensor) -> Rows:
        """What gives a pass parts of a matrix on the device, in a buffer of its own."""
        perturbation = one.perturbation

        def part(rows: slice) -> torch.Tensor:
            sources = [(rows, matrix.base[matrix.bytes_of(rows)])]
            return self._perturbed(matrix, rows, sources, {perturbation: buffer})[perturbation]

        return part

    def _share(
        self,
        unit: Unit,
        matrix: Matrix,
        passes: Sequence[Pass],
        buffers: Sequence[torch.Tensor],
        walk: Walk,
    ) -> None:
        """Take passes through a matrix in host memory, all by one part of it and then the next."""
        asked: dict[Pass, slice] = {}
        given: dict[Perturbation, torch.Tensor] = {}
        brought: list[Part] = []

        def ask(one: Pass, rows: slice) -> torch.Tensor:
            asked[one] = rows
            one.wait()
            return given[one.perturbation]

        for one in passes:
            self._enter(unit, matrix, one, partial(ask, one), walk)
        while asked:
            rows = min(asked.values(), key=lambda rows: rows.start)
            waiting = [one for one, wanted in asked.items() if wanted == rows]
            theirs = dict.fromkeys(one.perturbation for one in waiting)
            sources = self._brought(unit, matrix, rows, brought, walk)
            room = dict(zip(theirs, buffers, strict=False))
            if not matrix.weight.trainable:  # it is the same for all
                room = dict.fromkeys(theirs, buffers[0])
            given = self._perturbed(matrix, rows, sources, room)
            for one in waiting:
                if one.perturbation in given:
                    del asked[one]
                    walk.resume(one)
        if brought:
            self._workspace.asked[unit], self.expected = brought, []
            self._stream.forget_parts()
            self._stream.prefetch(walk.following(unit))

    def _brought(
        self, unit: Unit, matrix: Matrix, rows: slice, brought: list[Part], walk: Walk
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some rows as they are stored: brought in as few parts as buffers can hold.

        Without buffers kernels read them in host memory, which takes as long, but nothing else is
        computed meanwhile.
        """
        room = max((one.numel() for one in self._stream.buffers), default=0)
        most = rows_within(room, matrix.nbytes(slice(0, 1)))
        through = self._stream if most else self._workspace.transfer(unit)
        for some in parts_of(rows, most or rows.stop - rows.start):
            place = matrix.bytes_of(some)
            part = Part(unit, (some.start, some.stop), (place.start, place.stop))
            yield some, through.acquire(part)
            through.release(part)
            if most:
                brought.append(part)
                self.expected = [one for one in self.expected if one != part]
                self._stream.prefetch(chain(self.expected, walk.following(unit)))

    def _perturbed(
        self,
        matrix: Matrix,
        rows: slice,
        sources: Iterable[tuple[slice, torch.Tensor]],
        buffers: Mapping[Perturbation, torch.Tensor],
    ) -> dict[Perturbation, torch.Tensor]:
        """Some rows, as each of these perturbations has them, in its buffer; frozen ones in the one
        that all share.
        """
        index, first = self._changes.perturbations.index, matrix.bytes_of(rows).start
        for some, source in sources:
            place = matrix.bytes_of(some)
            at = slice(place.start - first, place.stop - first)
            if matrix.weight.trainable:
                targets = [(index(one), buffer[at]) for one, buffer in buffers.items()]
                self._vocabulary.arithmetic.perturb_rows(matrix, some, source, targets)
            else:
                next(iter(buffers.values()))[at].copy_(source)
        size = matrix.nbytes(rows)
        return {one: matrix.rows_in(buffer[:size]) for one, buffer in buffers.items()}

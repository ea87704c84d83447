"""Matrices with a row for every word, embedding and head: perturbed where they are used.

Of an embedding a pass looks up the rows of a batch's tokens, and a head can be multiplied by a part
of its rows at a time. So no perturbed copy of either is made: while a pass runs its module, the
parameter is the matrix as it is stored, and perturbed rows are made as they are asked for. Large
vocabularies would else need the device memory of one more copy, as large as many blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from zo2.engine.partition import Unit, Weight
from zo2.engine.record import reads_values
from zo2.engine.store import Layout
from zo2.engine.transfer import equal_parts
from zo2.engine.weights import Changes

Rows = Callable[[slice], torch.Tensor]  # some rows of a matrix, as a pass's weights are

PART = 48 << 20  # bytes of a matrix that are perturbed at once
GRAIN = 256  # a part's rows are a multiple: a GPU's products come in tiles of as many columns
ALIGNED = 8  # elements: rows are perturbed by the part if they are a multiple long
HOOKS = 1  # of the engine's, of either kind, on the module of a unit
_INTEGERS = torch.int32, torch.int64


def rows_within(size: int, row: int) -> int:
    """How many rows, of ``row`` bytes each, can be perturbed at once where ``size`` bytes fit."""
    return size // row // GRAIN * GRAIN


def rows_of_part(row: int) -> int:
    """How many rows, of so many bytes each, are perturbed at once."""
    return max(GRAIN, rows_within(PART, row))


def parts_of(rows: slice, most: int) -> list[slice]:
    """Rows in as few parts as there can be, each of ``most`` of them at most."""
    return equal_parts(rows, -(-(rows.stop - rows.start) // most), GRAIN)


def part_of(unit: Unit) -> int:
    """Bytes of the largest part of a unit's only matrix that is perturbed at once."""
    [weight] = unit.weights
    row = weight.nbytes // weight.shape.shape[0]
    return min(unit.stored, rows_of_part(row) * row)


def servable(units: Sequence[Unit], head: nn.Module | None) -> set[Unit]:
    """The units of which passes can be given rows.

    Args:
        units: of a model.
        head: its output embeddings, if these can be asked for part of their columns.
    """

    def is_matrix(unit: Unit) -> bool:
        if len(unit.weights) != 1 or unit.block is not None or unit.held:
            return False
        [weight] = unit.weights
        shape = weight.shape.shape
        return len(shape) == 2 and shape[1] % ALIGNED == 0 and shape[0] > 1

    def serves(module: nn.Module, weight: Weight) -> bool:
        known = isinstance(module, nn.Embedding) or module is head
        return known and module._parameters.get("weight") is weight.parameter

    return {
        unit
        for unit in units
        if is_matrix(unit) and all(serves(module, unit.weights[0]) for module in unit.modules)
    }


@dataclass(frozen=True)
class Matrix:
    """A matrix as a sweep finds it.

    Attributes:
        weight: which one.
        layout: where the weights of its unit lie in the flat buffers.
        base: these weights, 1-D uint8.
        changes: what the sweep does to weights; there are no open updates.
        held: how many of the rounds ``base`` has.
    """

    weight: Weight
    layout: Layout
    base: torch.Tensor
    changes: Changes
    held: int

    @property
    def columns(self) -> int:
        return self.weight.shape.shape[1]

    def bytes_of(self, rows: slice) -> slice:
        """Where some rows lie in the flat buffers."""
        begin = self.layout.offsets[self.layout.weights.index(self.weight)]
        row = self.columns * self.dtype.itemsize
        return slice(begin + rows.start * row, begin + rows.stop * row)

    def nbytes(self, rows: slice) -> int:
        """Bytes of some rows."""
        place = self.bytes_of(rows)
        return int(place.stop - place.start)

    @property
    def rounds_lacking(self) -> int:
        """How many of the rounds ``base`` lacks."""
        return len(self.changes.rounds) - self.held if self.weight.trainable else 0

    def rows_in(self, flat: torch.Tensor) -> torch.Tensor:
        """Rows that lie in 1-D uint8."""
        return flat.view(self.dtype).view(-1, self.columns)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.parameter.dtype


@runtime_checkable
class RowArithmetic(Protocol):
    """Arithmetic that can perturb some rows of a matrix alone, as a copy of all would have them."""

    def look_up(self, matrix: Matrix, index: int, ids: torch.Tensor) -> torch.Tensor:
        """Any rows.

        Args:
            matrix: of which.
            index: of the perturbation.
            ids: their numbers, int32 or int64, any shape.

        Returns:
            The ids' shape and the matrix's columns, in its precision; NaN for rows that there
            are not.
        """
        ...

    def perturb_rows(
        self,
        matrix: Matrix,
        rows: slice,
        source: torch.Tensor,
        targets: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Neighbouring rows, from a multiple of `GRAIN` on, of a multiple of `ALIGNED` columns.

        Args:
            matrix: of which.
            rows: which.
            source: these as they are stored, 1-D uint8.
            targets: (index of a perturbation, 1-D uint8 buffer for its copy) pairs.
        """
        ...


@dataclass(frozen=True)
class Served:
    """What a pass in a unit is given of its matrix.

    Attributes:
        look_up: any rows, by their numbers.
        part: neighbouring rows.
        bind: makes the parameter a perturbed copy of all, for whatever else reads it.
    """

    look_up: Callable[[torch.Tensor], torch.Tensor]
    part: Rows
    bind: Callable[[], None]


class Vocabulary:
    """Serves a model's embeddings and head.

    Args:
        units: those that can be served.
        arithmetic: what perturbs rows.

    Attributes:
        arithmetic: as given.
        modules: of the units, those that can be served now.
    """

    def __init__(self, units: set[Unit], arithmetic: RowArithmetic) -> None:
        self.arithmetic = arithmetic
        self._unit = {module: unit for unit in units for module in unit.modules}
        self._served: dict[Unit, Served | None] = {}
        self.modules: frozenset[nn.Module | None] = frozenset()

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """Within, modules are served on which others have no hooks, which could read the matrix: a
        head if what stands for its forward asks for rows (`rows_of`).
        """
        alone = [
            module
            for module in self._unit
            if len(module._forward_hooks) == len(module._forward_pre_hooks) == HOOKS
        ]
        heads = [m for m in alone if getattr(m.__dict__.get("forward"), "asks_for_rows", False)]
        embeddings = [
            m for m in alone if isinstance(m, nn.Embedding) and "forward" not in m.__dict__
        ]
        for module in embeddings:
            module.forward = self._forward(module)  # type: ignore[method-assign, assignment]
        self.modules = frozenset([*embeddings, *heads])
        try:
            yield
        finally:
            for module in embeddings:
                del module.forward
            self.modules = frozenset()

    @contextlib.contextmanager
    def serving(self, unit: Unit, served: Served | None) -> Iterator[None]:
        """Within, the parameter is as stored, and ``served`` gives rows, if not these."""
        self._served = {unit: served}
        try:
            yield
        finally:
            self._served = {}

    def rows_of(self, module: nn.Module) -> Rows | None:
        """The rows of a head, for the pass that runs it now; none if its parameter has them."""
        served = self._served.get(self._unit[module]) if module in self._unit else None
        return served.part if served else None

    def _forward(self, module: nn.Embedding) -> Callable[..., Any]:
        original, unit = module.forward, self._unit[module]

        def forward(*args: Any, **kwargs: Any) -> Any:
            served = self._served.get(unit)
            if served is None:
                return original(*args, **kwargs)
            with _Answering(module.weight, served):
                return original(*args, **kwargs)

        return forward


class _Answering(TorchFunctionMode):
    """Answers lookups in one matrix; whatever else reads it finds perturbed weights there."""

    def __init__(self, weight: torch.Tensor, served: Served) -> None:
        super().__init__()
        self._weight, self._served = weight, served
        self._bound = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._bound and reads_values(func):
            ids = _asked_for(func, args, self._weight)
            if ids is not None:
                return self._served.look_up(ids)
            if any(leaf is self._weight for leaf in tree_leaves((args, kwargs))):
                self._served.bind()
                self._bound = True
        return func(*args, **kwargs)


def _asked_for(func: Any, args: Sequence[Any], weight: torch.Tensor) -> torch.Tensor | None:
    """The numbers of rows, if this is a lookup in ``weight``."""
    places: Mapping[Any, tuple[int, int]] = {F.embedding: (0, 1), torch.embedding: (1, 0)}
    if func not in places or len(args) < 2:
        return None
    ids, matrix = (args[place] for place in places[func])
    usual = matrix is weight and isinstance(ids, torch.Tensor) and ids.dtype in _INTEGERS
    return ids if usual and ids.device == weight.device else None

"""The arithmetic on weights by one fused kernel for each unit, on a CUDA device.

What a kernel needs to know of a unit (where its weights lie) and of a sweep (seeds, coefficients)
lies in small tables on the device, so a launch is the same for every step.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch

from zo2.directions.base import Family, ParameterShape
from zo2.directions.gaussian import Gaussian
from zo2.directions.ones import Ones
from zo2.directions.rademacher import Rademacher
from zo2.directions.rank1 import Rank1
from zo2.directions.words import LANES, SIGN_BLOCK, TILE, Purpose
from zo2.engine import kernels
from zo2.engine.launching import ALIGNED, MOVING, Again, Launcher
from zo2.engine.partition import Weight
from zo2.engine.store import Layout
from zo2.engine.updates import Round, compose
from zo2.engine.vocabulary import Matrix
from zo2.engine.weights import Changes
from zo2.engine.zerocopy import Table

FAMILIES = {
    Gaussian: kernels.GAUSSIAN,
    Rademacher: kernels.RADEMACHER,
    Rank1: kernels.RANK1,
    Ones: kernels.ONES,
}
WARPS = 2  # so that a thread has four lanes of a tile: eight bytes of each plane
PAIRS = 4  # of tiles, for each program; one where that would leave too few programs for a GPU
FEW_PROGRAMS = 4096
MASKED = 16  # elements that kernels mask together: they read so far past the end of a weight
FEWEST = 16  # columns of a table: for each number of them kernels are compiled anew, in seconds
_NEVER = 1 << 62  # the first program of a segment that is not there
LENGTH = 1024  # elements of a row that is looked up, for each program
TRANSFORM = Launcher(kernels.transform, num_warps=WARPS, enable_fp_fusion=False)
LOOKED_UP = Launcher(kernels.looked_up, num_warps=4, enable_fp_fusion=False)


@dataclass(frozen=True, eq=False)
class Segments:
    """A unit's trainable weights of one precision, as the kernels see them.

    Attributes:
        dtype: their precision.
        weights: in the order of the table's columns.
        table: int64 (9, S) on the device; see `zo2.engine.kernels`.
        pairs: of tiles, for each program.
        programs: how many a launch has.
        span: how many rows of a matrix a tile meets: one, at most two or any, as 0, 1 or 2.
        streams: int64 (5, S) on the device: the streams of signs that rank1 needs.
        sign_programs: how many a launch that fills them has.
        width: signs of one seed, with the constant 1 in front.
        launches: what repeats one, by its kind.
    """

    dtype: torch.dtype
    weights: Sequence[Weight]
    table: torch.Tensor
    pairs: int
    programs: int
    span: int
    streams: torch.Tensor
    sign_programs: int
    width: int
    launches: dict[Hashable, Again] = field(default_factory=dict)


class Tables:
    """Seeds and coefficients of a sweep on the device; its memory stays where it is.

    Args:
        terms: of each round; the open updates count as the last one.
        perturbations: how many.
        device: a CUDA device.
    """

    def __init__(self, terms: tuple[int, ...], perturbations: int, device: torch.device) -> None:
        self.rounds, self.terms, self.perturbations = len(terms), sum(terms), perturbations
        # of a round's terms, as kernels are compiled for them: none, one, or any number
        self.of_each = terms[0] if set(terms) in ({0}, {1}) else 2
        count = perturbations + self.terms + 2 * self.rounds + 1
        self._seeds = slice(0, 8 * count)
        first = -(-8 * count // ALIGNED) * ALIGNED
        numbers = perturbations + 2 * (self.rounds + self.terms)
        self._numbers = slice(first, first + 4 * numbers)
        self._table = Table(self._numbers.stop, device)
        self.seeds = self._table.there[self._seeds].view(torch.int64)
        self.numbers = self._table.there[self._numbers].view(torch.float32)
        self._starts = list(accumulate(terms, initial=0))
        self.holds: Changes | None = None  # what kernels find here

    def fill(self, changes: Changes) -> None:
        """Copy what ``changes`` says to the device."""
        rounds = _with_open(changes)
        plain, decayed = ([compose(one, decayed) for one in rounds] for decayed in (False, True))
        seeds = [one.seed for one in changes.perturbations]
        seeds += [seed for one in plain for seed, _ in one.terms]
        seeds += [one.rounding_seed for one in plain]
        seeds += self._starts
        numbers = [one.scale for one in changes.perturbations]
        numbers += [one.scale for pair in zip(plain, decayed, strict=True) for one in pair]
        numbers += [c for either in (plain, decayed) for one in either for _, c in one.terms]
        with self._table.rewriting() as host:
            host[self._seeds] = array("q", seeds).tobytes()
            host[self._numbers] = array("f", numbers).tobytes()
        self.holds = changes


def _with_open(changes: Changes) -> tuple[Round, ...]:
    """The rounds, and the open updates as one more."""
    return (*changes.rounds, changes.open) if changes.open else changes.rounds


class FusedArithmetic:
    """The operations on weights as Triton kernels.

    Args:
        family: the directions z, one of `FAMILIES`.
        stochastic_rounding: how updated half-precision weights are rounded.
        device: a CUDA device.
    """

    def __init__(self, family: Family, stochastic_rounding: bool, device: torch.device) -> None:
        self._family = FAMILIES[type(family)]
        self._stochastic, self._device = stochastic_rounding, device
        self._segments: WeakKeyDictionary[Layout, list[Segments]] = WeakKeyDictionary()
        # of rows, by which weight they are of, the first and the end
        self._parts: WeakKeyDictionary[Layout, dict[tuple[int, int, int], Segments]] = (
            WeakKeyDictionary()
        )
        self._tables: dict[tuple[tuple[int, ...], int], Tables] = {}
        self._latest: Tables | None = None
        self._factors = torch.empty(0, dtype=torch.int8, device=device)
        self._lanes = torch.arange(LANES, dtype=torch.int32, device=device)

    def transform(
        self,
        layout: Layout,
        base: torch.Tensor,
        changes: Changes,
        held: int,
        write: bool,
        targets: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        of_layout, tables = self._segments_of(layout), self.load(changes)
        with torch.cuda.device_of(base):  # Triton launches on the current device
            for first in range(0, max(len(targets), 1), 2):
                for segments in of_layout:
                    pair = targets[first : first + 2]
                    self._launch(segments, base, changes, tables, held, write, pair)
                if write:  # what follows starts from the updated weights
                    write, held = False, len(changes.rounds)

    def _segments_of(self, layout: Layout) -> list[Segments]:
        if layout not in self._segments:
            self._segments[layout] = segments_of(layout, self._device)
        return self._segments[layout]

    def look_up(self, matrix: Matrix, index: int, ids: torch.Tensor) -> torch.Tensor:
        kind, columns = matrix.dtype, matrix.columns
        out = torch.empty((*ids.shape, columns), dtype=kind, device=self._device)
        ids = ids.contiguous()
        of_layout = self._segments_of(matrix.layout)
        segments = next(one for one in of_layout if one.dtype == kind)
        tables, parts = self.load(matrix.changes), -(-columns // LENGTH)
        lacking = tables.rounds - matrix.held
        constants = {
            "SEGMENTS": segments.table.shape[1],
            "FAMILY": self._family,
            "LENGTH": LENGTH,
            "TERMS": tables.of_each if lacking else 0,
            "STOCHASTIC": self._stochastic,
        }
        with torch.cuda.device_of(out):
            arguments = (
                matrix.base.view(kind),
                out,
                ids,
                segments.table,
                tables.seeds,
                tables.numbers,
                self._fill_factors(segments, tables, lacking > 0),
                segments.width,
                tables.perturbations,
                tables.terms,
                tables.rounds,
                matrix.held,
                segments.weights.index(matrix.weight),
                index,
                parts,
            )
            if out.numel():
                LOOKED_UP(ids.numel() * parts, arguments, constants)
        return out

    def perturb_rows(
        self,
        matrix: Matrix,
        rows: slice,
        source: torch.Tensor,
        targets: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        layout, changes = matrix.layout, matrix.changes
        parts, which = self._parts.setdefault(layout, {}), layout.weights.index(matrix.weight)
        key = which, rows.start, rows.stop
        if key not in parts:
            parts[key] = _segment_of_rows(matrix.weight, rows, self._device)
        tables, segments = self.load(changes), parts[key]
        with torch.cuda.device_of(source):
            for first in range(0, len(targets), 2):
                pair = targets[first : first + 2]
                self._launch(segments, source, changes, tables, matrix.held, False, pair)

    def load(self, changes: Changes) -> Tables:
        """Bring all that ``changes`` says to the device, where kernels will read it."""
        if self._latest is None or self._latest.holds != changes:
            terms = tuple(sum(len(u.terms) for u in one) for one in _with_open(changes))
            size = terms, len(changes.perturbations)
            if size not in self._tables:
                self._tables[size] = Tables(*size, self._device)
            self._latest = self._tables[size]
            self._latest.fill(changes)
        return self._latest

    def _launch(
        self,
        segments: Segments,
        base: torch.Tensor,
        changes: Changes,
        tables: Tables,
        held: int,
        write: bool,
        pair: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        lacking, has_open = tables.rounds - held, bool(changes.open)
        flats = [base, *[out for _, out in pair], base, base][:MOVING]
        addresses = [flat.data_ptr() for flat in flats]
        indices = [index for index, _ in pair]
        shared = len({changes.perturbations[index].seed for index in indices}) == 1
        factors = self._fill_factors(segments, tables, lacking > 0)
        aligned = [address % ALIGNED == 0 for address in addresses]
        kind = tables, held, write, has_open, shared, factors.data_ptr(), *indices, *aligned
        if (again := segments.launches.get(kind)) is not None:
            again(*addresses)
            return
        arguments = (
            *[flat.view(segments.dtype) for flat in flats],
            segments.table,
            tables.seeds,
            tables.numbers,
            factors,
            self._lanes,
            segments.width,
            tables.perturbations,
            tables.terms,
            tables.rounds,
            held,
            indices[0] if indices else 0,
            indices[1] if len(indices) > 1 else 0,
        )
        constants = {
            "SEGMENTS": segments.table.shape[1],
            "PAIRS": segments.pairs,
            "FAMILY": self._family,
            "UPDATES": min(lacking, 2),
            "TERMS": tables.of_each if lacking else 0,
            "OPEN": has_open,
            "WRITE": write,
            "STOCHASTIC": self._stochastic,
            "OUTS": len(pair),
            "SHARED": shared,
            "SPAN": segments.span,
        }
        again = TRANSFORM(segments.programs, arguments, constants)
        if again is not None:
            segments.launches[kind] = again

    def _fill_factors(self, segments: Segments, tables: Tables, updates: bool) -> torch.Tensor:
        """For rank1, the signs of all seeds that a launch needs, for these weights."""
        seeds = tables.perturbations + (tables.terms if updates else 0)
        if self._family != kernels.RANK1 or not seeds:
            return self._factors
        if self._factors.numel() < seeds * segments.width + MASKED:
            self._factors = self._factors.new_empty(seeds * segments.width + MASKED)
        factors = self._factors[: seeds * segments.width].view(seeds, segments.width)
        factors[:, 0] = 1
        kernels.signs[(segments.sign_programs, seeds)](
            factors,
            segments.streams,
            tables.seeds,
            segments.width,
            STREAMS=segments.streams.shape[1],
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return factors


def segments_of(layout: Layout, device: torch.device) -> list[Segments]:
    """A unit's trainable weights, by precision."""
    placed: dict[torch.dtype, list[tuple[Weight, int]]] = {}
    for weight, offset, trained in zip(layout.weights, layout.offsets, layout.trains, strict=True):
        if trained and weight.shape.numel:
            placed.setdefault(weight.parameter.dtype, []).append((weight, offset))
    return [_segments(dtype, weights, device) for dtype, weights in placed.items()]


def _segments(
    dtype: torch.dtype, weights: Sequence[tuple[Weight, int]], device: torch.device
) -> Segments:
    rows, streams = [], []
    sizes = [weight.shape.numel for weight, _ in weights]
    pairs = PAIRS if _programs(sizes, PAIRS) >= FEW_PROGRAMS else 1
    program, sign_program, width, span = 0, 0, ALIGNED, 0

    def stream(shape: ParameterShape, purpose: Purpose, count: int) -> int:
        """Make room for signs of a weight; returns where they lie."""
        nonlocal sign_program, width
        place = width
        streams.append((sign_program, place, count, shape.index, purpose))
        sign_program -= -count // SIGN_BLOCK
        width += -(-count // ALIGNED) * ALIGNED
        return place

    for weight, offset in weights:
        shape = weight.shape
        columns = shape.shape[-1] if shape.is_matrix else shape.numel
        rows_of_one = shape.shape[-2] if shape.is_matrix else 1
        if shape.numel > columns and columns % TILE:
            span = max(span, 1 if columns >= TILE else 2)
        row_at = 0  # a vector is one row, whose own sign is the constant 1
        if shape.is_matrix:
            row_at = stream(shape, Purpose.ROW_SIGN, shape.numel // columns)
        purpose = Purpose.COLUMN_SIGN if shape.is_matrix else Purpose.SIGN
        column_at = stream(shape, purpose, shape.numel // rows_of_one)
        rows.append(
            (program, offset // dtype.itemsize, shape.numel, shape.index, weight.decayed, columns,
             rows_of_one, row_at, column_at)
        )  # fmt: skip
        program += _programs([shape.numel], pairs)
    return Segments(
        dtype, [weight for weight, _ in weights], _padded(rows, device), pairs, program, span,
        _padded(streams, device), sign_program, width,
    )  # fmt: skip


def _segment_of_rows(weight: Weight, rows: slice, device: torch.device) -> Segments:
    """Some rows of a matrix, in a buffer that begins with the first of them.

    It is the matrix without the programs before, whose elements would lie before the buffer.
    """
    shape = weight.shape
    columns = shape.shape[1]
    first, end = rows.start * columns, rows.stop * columns
    pairs = PAIRS if first % (2 * TILE * PAIRS) == 0 else 1
    whole = _segments(weight.parameter.dtype, [(weight, 0)], device)
    before, programs = first // (2 * TILE * pairs), _programs([end], pairs)
    table = whole.table.clone()
    table[:3, 0] = torch.tensor([-before, -first, end])
    return replace(whole, table=table, pairs=pairs, programs=programs - before, launches={})


def _programs(sizes: Sequence[int], pairs: int) -> int:
    """How many programs weights of so many elements need."""
    return sum(-(-size // (2 * TILE * pairs)) for size in sizes)


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """Columns of numbers, filled up to a power of two by ones that begin at no program."""
    length = max(1 << (len(rows) - 1).bit_length(), FEWEST)
    filler = (_NEVER,) + (1,) * (len(rows[0]) - 1)
    table = [*rows, *[filler] * (length - len(rows))]
    return torch.tensor(table, dtype=torch.int64).T.contiguous().to(device)

"""The transform of a unit's weights as one Triton kernel: updates, rounding and perturbed copies.

A weight is read once; z is drawn in registers and never stored. The arithmetic is that of
`zo2.engine.weights.TorchArithmetic`, operation by operation, so the bits are the same, except for
a sum over several rank1 directions, which torch computes as a matrix product.

A program works on up to ``PAIRS`` pairs of tiles of one weight. A tile is 1024 elements, as four
planes of 256: the planes are what the four words of a Philox counter go to
(`zo2.directions.words`). A pair of tiles is rounded by the two halves of the same words.

Weights begin at multiples of 64 bytes, and what lies between them is nobody's: elements are
masked sixteen at a time, so that each thread reads and writes several at once.

Tables that kernels read:

    segments   int64 (9, S): of each weight the first program (ascending, padded with a large
               number), first element in the flat buffer, number of elements, parameter index,
               whether it is decayed, columns and rows of a matrix, and where its row and column
               signs lie in `factors`
    seeds      int64: seeds of the P perturbations, seeds of the n terms of all rounds, rounding
               seeds of the R rounds, and where in the terms each round begins (R + 1)
    numbers    float32: scales of the perturbations, of each round the scales of weights that are
               not and that are decayed, coefficients of the terms for weights not decayed, and for
               decayed
    factors    int8 (P + n, width): for rank1, the signs of all seeds; element 0 of a row is 1, and
               streams of signs begin at multiples of 16, as do rows
    lanes      int32 (256): 0, 1, 2, ...; what is computed from a load lies in threads as what is
               loaded and stored does, so that nothing has to change places in shared memory
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from zo2.directions.gpu import Constant, _box_muller, _counters, _philox
from zo2.directions.words import LANES, SIGN_BLOCK, TILE, Purpose
from zo2.engine.weights import SMALLEST_NORMAL

GAUSSIAN, RADEMACHER, RANK1, ONES = range(4)
_LANES = Constant(LANES)
_TILE = Constant(TILE)
_SIGN_BLOCK = Constant(SIGN_BLOCK)
_GAUSSIAN, _RADEMACHER, _RANK1 = (Constant(f) for f in (GAUSSIAN, RADEMACHER, RANK1))
_NORMAL = Constant(int(Purpose.NORMAL))
_SIGN = Constant(int(Purpose.SIGN))
_ROUNDING = Constant(int(Purpose.ROUNDING))
_SMALLEST_NORMAL = Constant(SMALLEST_NORMAL)
_NAN = Constant(0x7FC00000)

_jit = functools.partial(
    triton.jit,
    do_not_specialize=["width", "perturbations", "terms", "rounds", "held", "first", "second"],
)


@triton.jit
def _key(seeds, index):
    """The two words of the seed at ``index``."""
    seed = tl.load(seeds + index)
    return (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def _counted(seeds, index, lane, first, parameter, purpose):
    """The words of the counters ``first + lane``, under the seed at ``index``."""
    key0, key1 = _key(seeds, index)
    low, high = _counters(lane, first)
    return _philox(low, high, key0, key1, parameter, purpose)


@triton.jit
def _words(seeds, index, counter, parameter, purpose):
    """The words of any counters (int64), under the seed at ``index``."""
    key0, key1 = _key(seeds, index)
    low, high = (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32)
    return _philox(low, high, key0, key1, parameter, purpose)


@triton.jit
def _signs_of_block(seeds, index, lane, block, parameter, purpose):
    """The words that hold the signs of a block of 8192 elements, 32 in each lane's."""
    w0, w1, w2, w3 = _counted(seeds, index, lane, block // 4 * _LANES, parameter, purpose)
    return _of_plane(w0, w1, w2, w3, block % 4)


@triton.jit
def _of_plane(w0, w1, w2, w3, plane):
    """One of the four words of each counter."""
    return tl.where(plane == 0, w0, tl.where(plane == 1, w1, tl.where(plane == 2, w2, w3)))


@triton.jit
def _sign(word, bit):
    """+1 or -1 by a bit of a word."""
    return 1.0 - 2.0 * ((word >> bit.to(tl.uint32)) & 1).to(tl.float32)


@triton.jit
def _factored(u, v, local, inside, row, column, columns, rows, SPAN: tl.constexpr):
    """Elements of u vᵀ: those ``local`` after the one at (row, column)."""
    if SPAN == 0:  # all in one row, and the places of v are as in a vector
        left = tl.load(u + row)
        at = tl.multiple_of(row // rows * columns + column, 16)
        right = tl.load(v + at + local, mask=inside, other=0)
        return right.to(tl.float32) * left.to(tl.float32)
    column = column + local
    if SPAN == 1:  # no further than the next row
        over = column >= columns
        further = over.to(tl.int32)
        column = tl.where(over, column - columns, column)
        matrix = tl.where(further > 0, (row + 1) // rows, row // rows)  # of a stack
    else:
        further = column // columns
        column = column - further * columns
        matrix = (row + further) // rows
    left = tl.load(u + row + further, mask=inside, other=0)
    right = tl.load(v + matrix * columns + column, mask=inside, other=0)
    return (left * right).to(tl.float32)


@triton.jit
def _z(
    seeds, index, factors, width, lane, word, tile, row, column, i0, i1, i2, i3, parameter, segment,
    SEGMENTS: tl.constexpr, FAMILY: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The four planes of z of the seed at ``index``.

    For rademacher ``word`` holds the signs of the tile's block; for rank1 the tile's first
    element is the one at (``row``, ``column``).
    """
    if FAMILY == _GAUSSIAN:
        w0, w1, w2, w3 = _counted(seeds, index, lane, tile * _LANES, parameter, _NORMAL)
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
    elif FAMILY == _RADEMACHER:
        bit = (tile % 8 * 4).to(tl.int32)
        z0, z1 = _sign(word, bit), _sign(word, bit + 1)
        z2, z3 = _sign(word, bit + 2), _sign(word, bit + 3)
    elif FAMILY == _RANK1:
        columns = tl.load(segment + 5 * SEGMENTS).to(tl.int32)
        rows = tl.load(segment + 6 * SEGMENTS).to(tl.int32)
        own = factors + tl.multiple_of(index.to(tl.int64) * width, 16)
        u = own + tl.load(segment + 7 * SEGMENTS)
        v = own + tl.multiple_of(tl.load(segment + 8 * SEGMENTS), 16)
        at = tl.arange(0, _LANES)
        z0 = _factored(u, v, at, i0, row, column, columns, rows, SPAN)
        z1 = _factored(u, v, at + _LANES, i1, row, column, columns, rows, SPAN)
        z2 = _factored(u, v, at + 2 * _LANES, i2, row, column, columns, rows, SPAN)
        z3 = _factored(u, v, at + 3 * _LANES, i3, row, column, columns, rows, SPAN)
    else:
        z0 = (lane >= 0).to(tl.float32)
        z1, z2, z3 = z0, z0, z0
    return z0, z1, z2, z3


@triton.jit
def _round_stochastically(value, bits, HALF: tl.constexpr):
    """As `zo2.engine.weights.round_stochastically`, to float16 if HALF, else to bfloat16.

    Bits added to those of a float change no more than its magnitude, and those of infinity are cut
    off again. A GPU's NaN has all bits set but the sign's: it would be carried over to zero.
    """
    if HALF:
        size = tl.abs(value)
        moved = tl.where(size < _SMALLEST_NORMAL, _SMALLEST_NORMAL, 0.0)
        raw = (size + moved).to(tl.uint32, bitcast=True) + (bits & 0x1FFF)
        raw = tl.minimum(raw, _NAN) & 0xFFFFE000  # with the addition, one instruction of sm_90
        size = raw.to(tl.float32, bitcast=True) - moved
        sign = value.to(tl.uint32, bitcast=True) & 0x80000000
        raw = size.to(tl.uint32, bitcast=True) | sign
        rounded = raw.to(tl.float32, bitcast=True).to(tl.float16)
    else:
        own = value.to(tl.uint32, bitcast=True)
        raw = tl.where(value == value, own + (bits & 0xFFFF), own)
        rounded = (raw >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return rounded


@triton.jit
def _rounded(value, bits, KIND: tl.constexpr, STOCHASTIC: tl.constexpr):
    """An updated plane in the weights' precision."""
    if STOCHASTIC:
        rounded = _round_stochastically(value, bits, tl.float16 == KIND)
    else:
        rounded = value.to(KIND)
    return rounded


@triton.jit
def _moved(
    x0, x1, x2, x3, first, end, word, coefficients, seeds, perturbations, factors, width, lane,
    tile, row, column, i0, i1, i2, i3, parameter, segment,
    SEGMENTS: tl.constexpr, FAMILY: tl.constexpr, TERMS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Four planes moved along the terms from ``first`` to ``end``, at least one."""
    c = tl.load(coefficients + first)
    z0, z1, z2, z3 = _z(
        seeds, perturbations + first, factors, width, lane, word, tile, row, column,
        i0, i1, i2, i3, parameter, segment, SEGMENTS, FAMILY, SPAN,
    )  # fmt: skip
    s0, s1, s2, s3 = z0 * c, z1 * c, z2 * c, z3 * c
    if TERMS > 1:
        for k in range(first + 1, end):
            c = tl.load(coefficients + k)
            next_word = 0
            if FAMILY == _RADEMACHER:
                next_word = _signs_of_block(
                    seeds, perturbations + k, lane, tile // 8, parameter, _SIGN
                )
            z0, z1, z2, z3 = _z(
                seeds, perturbations + k, factors, width, lane, next_word, tile, row, column,
                i0, i1, i2, i3, parameter, segment, SEGMENTS, FAMILY, SPAN,
            )  # fmt: skip
            s0, s1, s2, s3 = s0 + z0 * c, s1 + z1 * c, s2 + z2 * c, s3 + z3 * c
    return x0 + s0, x1 + s1, x2 + s2, x3 + s3


@triton.jit
def _updated(
    x0, x1, x2, x3, update, first, word, seeds, numbers, factors, width, lane, tile, row, column,
    i0, i1, i2, i3, parameter, segment, decayed, perturbations, terms, rounds,
    SEGMENTS: tl.constexpr, FAMILY: tl.constexpr, TERMS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Four planes after round ``update``, whose terms begin with the one at ``first``."""
    scale = tl.load(numbers + perturbations + 2 * update + decayed)
    x0, x1, x2, x3 = x0 * scale, x1 * scale, x2 * scale, x3 * scale
    coefficients = numbers + perturbations + 2 * rounds + decayed * terms
    if TERMS == 1:
        x0, x1, x2, x3 = _moved(
            x0, x1, x2, x3, first, first, word, coefficients, seeds, perturbations, factors, width,
            lane, tile, row, column, i0, i1, i2, i3, parameter, segment, SEGMENTS, FAMILY, TERMS,
            SPAN,
        )  # fmt: skip
    if TERMS > 1:
        end = tl.load(seeds + perturbations + terms + rounds + update + 1).to(tl.int32)
        if first < end:
            x0, x1, x2, x3 = _moved(
                x0, x1, x2, x3, first, end, word, coefficients, seeds, perturbations, factors,
                width, lane, tile, row, column, i0, i1, i2, i3, parameter, segment, SEGMENTS,
                FAMILY, TERMS, SPAN,
            )  # fmt: skip
    return x0, x1, x2, x3


@triton.jit
def _put(out, inside, weight, z, scale):
    """Store weight + scale * z."""
    value = weight + z * scale
    tl.store(out + tl.arange(0, _LANES), value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _put_planes(out, i0, i1, i2, i3, x0, x1, x2, x3, z0, z1, z2, z3, scale):
    """Store a perturbed copy of the four planes."""
    _put(out, i0, x0, z0, scale)
    _put(out + _LANES, i1, x1, z1, scale)
    _put(out + 2 * _LANES, i2, x2, z2, scale)
    _put(out + 3 * _LANES, i3, x3, z3, scale)


@_jit
def transform(
    base, out0, out1, segments, seeds, numbers, factors, lanes, width, perturbations, terms,
    rounds, held, first, second,
    SEGMENTS: tl.constexpr, PAIRS: tl.constexpr, FAMILY: tl.constexpr, UPDATES: tl.constexpr,
    TERMS: tl.constexpr, OPEN: tl.constexpr, WRITE: tl.constexpr, STOCHASTIC: tl.constexpr,
    OUTS: tl.constexpr, SHARED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Update a unit's weights and write up to two perturbed copies.

    ``UPDATES``: the weights lack none of the ``rounds``, the last one, or all from ``held`` on, as
    it is 0, 1 or 2. ``TERMS``: a round has no direction (decay alone), one, or any number, as it is
    0, 1 or 2. ``OPEN``: the result of the last round is not rounded. ``WRITE``: it replaces
    ``base``. ``OUTS`` copies go to ``out0`` and ``out1``, by perturbations ``first`` and
    ``second``, which have one seed if ``SHARED``. ``SPAN``: of a matrix a tile meets one row, at
    most two, or any number, as it is 0, 1 or 2.

    Loops are not unrolled: for sm_90 that keeps an update with two copies at 23 KB of instructions
    and 71 registers, where both tiles of a pair at once would be 40 KB and 96.
    """
    program = tl.program_id(0)
    firsts = tl.load(segments + tl.arange(0, SEGMENTS))
    which = tl.sum((firsts <= program).to(tl.int32), axis=0) - 1
    segment = segments + which
    first_pair = (program - tl.load(segment)) * PAIRS
    offset = tl.load(segment + SEGMENTS)
    numel = tl.load(segment + 2 * SEGMENTS)
    parameter = tl.load(segment + 3 * SEGMENTS)
    decayed = tl.load(segment + 4 * SEGMENTS)
    at = tl.arange(0, _LANES)
    lane = tl.load(lanes + at)
    kind: tl.constexpr = base.dtype.element_ty
    stochastic: tl.constexpr = STOCHASTIC and kind != tl.float32
    rounding = perturbations + terms  # where the seeds of rounding begin
    starts = seeds + rounding + rounds
    last = rounds - 1

    block = first_pair // 4
    last_term = last
    if TERMS > 1:
        last_term = tl.load(starts + last).to(tl.int32)
    old, new, other = 0, 0, 0  # for rademacher, the signs of the program's elements
    if FAMILY == _RADEMACHER:
        if TERMS:
            old = _signs_of_block(seeds, perturbations + last_term, lane, block, parameter, _SIGN)
        if OUTS >= 1:
            new = _signs_of_block(seeds, first, lane, block, parameter, _SIGN)
        if OUTS >= 2 and not SHARED:
            other = _signs_of_block(seeds, second, lane, block, parameter, _SIGN)
    row, column = 0, 0  # for rank1, the place of a tile's first element
    if FAMILY == _RANK1:
        columns = tl.load(segment + 5 * SEGMENTS)
        row = first_pair * 2 * _TILE // columns
        column = (first_pair * 2 * _TILE - row * columns).to(tl.int32)
        row, columns = row.to(tl.int32), columns.to(tl.int32)

    for step in range(0, tl.minimum(PAIRS, tl.cdiv(numel, 2 * _TILE) - first_pair)):
        pair = first_pair + step
        r0, r1, r2, r3 = 0, 0, 0, 0
        if (UPDATES and stochastic) and not OPEN:
            r0, r1, r2, r3 = _counted(
                seeds, rounding + last, lane, pair * _LANES, parameter, _ROUNDING
            )
        for upper in range(2):
            tile = 2 * pair + upper
            left = tl.minimum(numel - tile * _TILE, _TILE)
            left = tl.multiple_of((left.to(tl.int32) + 15) // 16 * 16, 16)
            i0, i1 = at < left, at + _LANES < left
            i2, i3 = at + 2 * _LANES < left, at + 3 * _LANES < left
            here = tl.multiple_of(offset + tile * _TILE, 16)
            own = base + here
            x0 = tl.load(own + at, mask=i0, other=0.0).to(tl.float32)
            x1 = tl.load(own + _LANES + at, mask=i1, other=0.0).to(tl.float32)
            x2 = tl.load(own + 2 * _LANES + at, mask=i2, other=0.0).to(tl.float32)
            x3 = tl.load(own + 3 * _LANES + at, mask=i3, other=0.0).to(tl.float32)

            if UPDATES > 1:
                for update in range(held, last):
                    term = update
                    if TERMS > 1:
                        term = tl.load(starts + update).to(tl.int32)
                    word = 0
                    if FAMILY == _RADEMACHER and TERMS:
                        word = _signs_of_block(
                            seeds, perturbations + term, lane, block, parameter, _SIGN
                        )
                    x0, x1, x2, x3 = _updated(
                        x0, x1, x2, x3, update, term, word, seeds, numbers, factors, width, lane,
                        tile, row, column, i0, i1, i2, i3, parameter, segment, decayed,
                        perturbations, terms, rounds, SEGMENTS, FAMILY, TERMS, SPAN,
                    )  # fmt: skip
                    b0, b1, b2, b3 = 0, 0, 0, 0
                    if stochastic:
                        b0, b1, b2, b3 = _counted(
                            seeds, rounding + update, lane, pair * _LANES, parameter, _ROUNDING
                        )
                        half = (tile % 2 * 16).to(tl.uint32)
                        b0, b1, b2, b3 = b0 >> half, b1 >> half, b2 >> half, b3 >> half
                    x0 = _rounded(x0, b0, kind, stochastic).to(tl.float32)
                    x1 = _rounded(x1, b1, kind, stochastic).to(tl.float32)
                    x2 = _rounded(x2, b2, kind, stochastic).to(tl.float32)
                    x3 = _rounded(x3, b3, kind, stochastic).to(tl.float32)
            if UPDATES:
                x0, x1, x2, x3 = _updated(
                    x0, x1, x2, x3, last, last_term, old, seeds, numbers, factors, width, lane,
                    tile, row, column, i0, i1, i2, i3, parameter, segment, decayed, perturbations,
                    terms, rounds, SEGMENTS, FAMILY, TERMS, SPAN,
                )  # fmt: skip
                if not OPEN:
                    y0 = _rounded(x0, r0, kind, stochastic)
                    y1 = _rounded(x1, r1, kind, stochastic)
                    y2 = _rounded(x2, r2, kind, stochastic)
                    y3 = _rounded(x3, r3, kind, stochastic)
                    if stochastic:
                        r0, r1, r2, r3 = r0 >> 16, r1 >> 16, r2 >> 16, r3 >> 16
                    if WRITE:
                        tl.store(own + at, y0, mask=i0)
                        tl.store(own + _LANES + at, y1, mask=i1)
                        tl.store(own + 2 * _LANES + at, y2, mask=i2)
                        tl.store(own + 3 * _LANES + at, y3, mask=i3)
                    x0, x1, x2, x3 = (
                        y0.to(tl.float32), y1.to(tl.float32), y2.to(tl.float32), y3.to(tl.float32)
                    )  # fmt: skip

            if OUTS >= 1:
                scale = tl.load(numbers + first)
                z0, z1, z2, z3 = _z(
                    seeds, first, factors, width, lane, new, tile, row, column,
                    i0, i1, i2, i3, parameter, segment, SEGMENTS, FAMILY, SPAN,
                )  # fmt: skip
                _put_planes(out0 + here, i0, i1, i2, i3, x0, x1, x2, x3, z0, z1, z2, z3, scale)
            if OUTS >= 2:
                scale = tl.load(numbers + second)
                if not SHARED:
                    z0, z1, z2, z3 = _z(
                        seeds, second, factors, width, lane, other, tile, row, column,
                        i0, i1, i2, i3, parameter, segment, SEGMENTS, FAMILY, SPAN,
                    )  # fmt: skip
                _put_planes(out1 + here, i0, i1, i2, i3, x0, x1, x2, x3, z0, z1, z2, z3, scale)

            if FAMILY == _RANK1:
                column += _TILE
                row += column // columns
                column = column % columns


@_jit
def signs(out, streams, seeds, width, STREAMS: tl.constexpr):
    """Fill `factors` (int8): program (i, k) makes 8192 signs of one stream, of seed k.

    ``streams`` int64 (5, S): of each stream the first program, place in a row of ``out``, number
    of signs, parameter index, purpose.
    """
    program, index = tl.program_id(0), tl.program_id(1)
    firsts = tl.load(streams + tl.arange(0, STREAMS))
    which = tl.sum((firsts <= program).to(tl.int32), axis=0) - 1
    stream = streams + which
    block = program - tl.load(stream)
    at = tl.load(stream + STREAMS)
    count = tl.load(stream + 2 * STREAMS)
    parameter = tl.load(stream + 3 * STREAMS)
    purpose = tl.load(stream + 4 * STREAMS)
    lane = tl.arange(0, _LANES)
    word = _signs_of_block(seeds, index, lane, block, parameter, purpose)[None, :]
    bit = tl.arange(0, 32)[:, None]
    e = block * _SIGN_BLOCK + bit * _LANES + lane[None, :]
    row = out + index.to(tl.int64) * width + at
    tl.store(row + e, _sign(word, bit).to(tl.int8), mask=e < count)


@triton.jit
def _z_at(
    seeds, index, factors, width, e, row, column, inside, parameter, segment,
    SEGMENTS: tl.constexpr, FAMILY: tl.constexpr,
):  # fmt: skip
    """Any elements of a matrix's z of the seed at ``index``; see `_z`."""
    if FAMILY == _GAUSSIAN:
        tile = e // _TILE
        plane = (e - tile * _TILE) // _LANES
        w0, w1, w2, w3 = _words(seeds, index, tile * _LANES + e % _LANES, parameter, _NORMAL)
        even, odd = _box_muller(tl.where(plane < 2, w0, w2), tl.where(plane < 2, w1, w3))
        z = tl.where(plane % 2 == 0, even, odd)
    elif FAMILY == _RADEMACHER:
        block = e // _SIGN_BLOCK
        bit = (e - block * _SIGN_BLOCK) // _LANES
        counter = block // 4 * _LANES + e % _LANES
        z = _sign(_word_at(seeds, index, counter, block % 4, parameter, _SIGN), bit)
    elif FAMILY == _RANK1:
        own = factors + index.to(tl.int64) * width
        u = tl.load(own + tl.load(segment + 7 * SEGMENTS) + row)
        v = tl.load(own + tl.load(segment + 8 * SEGMENTS) + column, mask=inside, other=0)
        z = u.to(tl.float32) * v.to(tl.float32)
    else:
        z = (column >= 0).to(tl.float32)
    return z


@triton.jit
def _word_at(seeds, index, counter, plane, parameter, purpose):
    """Of each counter (int64) the word of one plane, under the seed at ``index``."""
    w0, w1, w2, w3 = _words(seeds, index, counter, parameter, purpose)
    return _of_plane(w0, w1, w2, w3, plane)


@functools.partial(
    triton.jit,
    do_not_specialize=[
        "width", "perturbations", "terms", "rounds", "held", "which", "index", "parts"
    ],
)  # fmt: skip
def looked_up(
    base, out, ids, segments, seeds, numbers, factors, width, perturbations, terms, rounds, held,
    which, index, parts,
    SEGMENTS: tl.constexpr, FAMILY: tl.constexpr, LENGTH: tl.constexpr, TERMS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Write perturbed copies of some rows of a matrix: what `transform` writes there.

    A program makes ``LENGTH`` elements of a row, one of its ``parts``, each for itself: the other
    elements of its counters may be in rows that nobody asks for. The matrix is number ``which`` of
    the segments, perturbed by the perturbation at ``index``. A row that there is not is NaN.
    ``TERMS`` as in `transform`.
    """
    program = tl.program_id(0)
    segment = segments + which
    offset = tl.load(segment + SEGMENTS)
    numel = tl.load(segment + 2 * SEGMENTS)
    parameter = tl.load(segment + 3 * SEGMENTS)
    decayed = tl.load(segment + 4 * SEGMENTS)
    columns = tl.load(segment + 5 * SEGMENTS)
    asked = program // parts
    row = tl.load(ids + asked).to(tl.int64)
    column = program % parts * LENGTH + tl.arange(0, LENGTH)
    inside = column < columns
    known = (row >= 0) & (row < numel // columns)
    row = tl.where(known, row, 0)
    e = row * columns + column
    kind: tl.constexpr = base.dtype.element_ty
    stochastic: tl.constexpr = STOCHASTIC and kind != tl.float32
    x = tl.load(base + offset + e, mask=inside, other=0.0).to(tl.float32)
    starts = seeds + perturbations + terms + rounds
    coefficients = numbers + perturbations + 2 * rounds + decayed * terms
    for update in range(held, rounds):
        x = x * tl.load(numbers + perturbations + 2 * update + decayed)
        if TERMS:
            first = tl.load(starts + update).to(tl.int32)
            end = tl.load(starts + update + 1).to(tl.int32)
            total = tl.zeros((LENGTH,), tl.float32)
            for k in range(first, end):
                z = _z_at(
                    seeds, perturbations + k, factors, width, e, row, column, inside, parameter,
                    segment, SEGMENTS, FAMILY,
                )  # fmt: skip
                step = z * tl.load(coefficients + k)
                total = tl.where(k == first, step, total + step)
            x = tl.where(first < end, x + total, x)
        bits = tl.zeros((LENGTH,), tl.uint32)
        if stochastic:
            tile = e // _TILE
            counter = tile // 2 * _LANES + e % _LANES
            plane = (e - tile * _TILE) // _LANES
            seed = perturbations + terms + update
            bits = _word_at(seeds, seed, counter, plane, parameter, _ROUNDING)
            bits = bits >> (tile % 2 * 16).to(tl.uint32)
        x = _rounded(x, bits, kind, stochastic).to(tl.float32)
    x = tl.where(known, x, float("nan"))
    z = _z_at(
        seeds, index, factors, width, e, row, column, inside, parameter, segment, SEGMENTS, FAMILY
    )  # fmt: skip
    value = x + z * tl.load(numbers + index)
    tl.store(
        out + asked.to(tl.int64) * columns + column, value.to(out.dtype.element_ty), mask=inside
    )

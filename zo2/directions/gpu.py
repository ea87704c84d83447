"""The streams of `words` and `normals` as Triton kernels: the same bits on a GPU.

Triton comes with torch's CUDA wheels. Floating-point contraction is switched off, so that every
operation is rounded as in the definition.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from zo2.directions import normals
from zo2.directions.words import LANES, MULTIPLIERS, ROUNDS, SIGN_BLOCK, TILE, WEYL
from zo2.errors import first_line

logger = logging.getLogger("zo2")

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


@functools.cache
def available() -> bool:
    """Whether Triton works here, tried once; where it does not, the log says why."""
    if triton is None:
        logger.warning("Triton is not installed: a step on the GPU is several times slower.")
        return False
    try:
        fill_halves(torch.empty(1, dtype=torch.int32, device="cuda"), 0, 0, 0, 0)
    except Exception as error:  # no compiler, no headers, a driver that is too old, ...
        logger.warning(
            "Triton cannot compile kernels here (%s: %s), so a step on the GPU is several times "
            "slower; zo2-verify says what is missing.", type(error).__name__, first_line(error),
        )  # fmt: skip
        return False
    return True


def fill_halves(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write half words ``start`` .. of a stream into ``out`` (int32, on a GPU)."""
    _launch(_halves, 2 * TILE, out, seed, parameter, purpose, start)


def fill_normals(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write normals ``start`` .. of a stream into ``out`` (float32, on a GPU)."""
    _launch(_normals, TILE, out, seed, parameter, purpose, start)


def fill_signs(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write signs ``start`` .. of a stream into ``out`` (float32 +1 and -1, on a GPU)."""
    _launch(_signs, SIGN_BLOCK, out, seed, parameter, purpose, start)


def _launch(
    kernel: Any, block: int, out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int
) -> None:
    if out.numel() == 0:
        return
    first, last = start // block, -(-(start + out.numel()) // block)
    with torch.cuda.device_of(out):  # Triton launches on the current device
        kernel[(last - first,)](
            out,
            out.numel(),
            start,
            first,
            seed & 0xFFFFFFFF,
            seed >> 32,
            parameter,
            purpose,
            num_warps=4,
            enable_fp_fusion=False,
        )


if triton is not None:
    _jit = functools.partial(
        triton.jit,
        do_not_specialize=["count", "start", "first", "key0", "key1", "parameter", "purpose"],
    )

    class Constant(tl.constexpr):  # type: ignore[misc]
        """A number that kernels know, as a global variable of their module.

        Before each launch Triton compares all of them with what they were when the kernel was
        compiled, by an operator that makes two objects each time.
        """

        def __ne__(self, other: object) -> bool:
            return bool(self.value != getattr(other, "value", other))

        __hash__ = tl.constexpr.__hash__

    _LANES = Constant(LANES)
    _TILE = Constant(TILE)
    _SIGN_BLOCK = Constant(SIGN_BLOCK)
    _ROUNDS = Constant(ROUNDS)
    _M0, _M1 = (Constant(m) for m in MULTIPLIERS)
    _W0, _W1 = (Constant(w) for w in WEYL)
    _L0, _L1, _L2, _L3, _L4, _L5 = (Constant(c) for c in normals.LOG_POLYNOMIAL)
    _R0, _R1, _R2 = (Constant(c) for c in normals.ROOT_POLYNOMIAL)
    _S0, _S1, _S2, _S3 = (Constant(c) for c in normals.SIN_POLYNOMIAL)
    _C0, _C1, _C2, _C3 = (Constant(c) for c in normals.COS_POLYNOMIAL)
    _MINUS_TWO_LN2 = Constant(normals.MINUS_TWO_LN2)
    _EXPONENT_BASE = Constant(normals.EXPONENT_BASE)
    _EXPONENT_OFFSET = Constant(normals.EXPONENT_OFFSET)
    _ROOT_GUESS = Constant(normals.ROOT_GUESS)

    @triton.jit
    def _philox(c0, c1, key0, key1, parameter, purpose):
        """The four words of each counter: ``c0`` a tensor of its low words, the rest numbers.

        The product of two words is one wide multiplication, of which both halves are used.
        """
        zero = tl.full((), 0, tl.int64)  # makes words of constants, too
        c0, c1 = c0.to(tl.uint32), (zero + c1).to(tl.uint32)
        c2, c3 = (zero + parameter).to(tl.uint32), (zero + purpose).to(tl.uint32)
        k0, k1 = (zero + key0).to(tl.uint32), (zero + key1).to(tl.uint32)
        m0, m1 = tl.full((), _M0, tl.uint64), tl.full((), _M1, tl.uint64)
        for _ in tl.static_range(_ROUNDS):
            p0, p1 = c0.to(tl.uint64) * m0, c2.to(tl.uint64) * m1
            high0, high1 = (p0 >> 32).to(tl.uint32), (p1 >> 32).to(tl.uint32)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1.to(tl.uint32), high0 ^ c3 ^ k1, p0.to(tl.uint32)
            k0 += tl.full((), _W0, tl.uint32)
            k1 += tl.full((), _W1, tl.uint32)
        return c0, c1, c2, c3

    @triton.jit
    def _counters(lane, first):
        """Low words and the high word of the counters ``first + lane``.

        ``first`` is a multiple of LANES, so no carry reaches the high word.
        """
        low = (first & 0xFFFFFFFF).to(tl.uint32) + lane.to(tl.uint32)
        return low, ((first >> 32) & 0xFFFFFFFF).to(tl.uint32)

    @triton.jit
    def _box_muller(radius, angle):
        """As `normals.box_muller`."""
        bits = (radius.to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
        exponent = (bits >> 23) + _EXPONENT_BASE
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        exponent = exponent.to(tl.float32, bitcast=True) - _EXPONENT_OFFSET
        a = tl.fma(tl.full(m.shape, _L0, tl.float32), m, _L1)
        a = tl.fma(a, m, _L2)
        a = tl.fma(a, m, _L3)
        a = tl.fma(a, m, _L4)
        a = tl.fma(a, m, _L5)
        a = tl.fma(exponent, _MINUS_TWO_LN2, a)
        y = (-(a.to(tl.int32, bitcast=True) >> 1) + _ROOT_GUESS).to(tl.float32, bitcast=True)
        s = a * y
        t = s * y
        q = tl.fma(tl.full(t.shape, _R0, tl.float32), t, _R1)
        r = s * tl.fma(q, t, _R2)
        # adding to the sign's bit turns it over, in the instruction that shifts
        r = (r.to(tl.uint32, bitcast=True) + (angle << 31)).to(tl.float32, bitcast=True)
        x = angle.to(tl.int32, bitcast=True).to(tl.float32)
        x2 = x * x
        cosine = tl.fma(tl.full(x.shape, _C0, tl.float32), x2, _C1)
        cosine = tl.fma(cosine, x2, _C2)
        cosine = tl.fma(cosine, x2, _C3)
        sine = tl.fma(tl.full(x.shape, _S0, tl.float32), x2, _S1)
        sine = tl.fma(sine, x2, _S2)
        sine = tl.fma(sine, x2, _S3) * x
        return r * cosine, r * sine

    @triton.jit
    def _store(out, count, at, value):
        tl.store(out + at, value, mask=(at >= 0) & (at < count))

    @_jit
    def _halves(out, count, start, first, key0, key1, parameter, purpose):
        pair = first.to(tl.int64) + tl.program_id(0)
        low, high = _counters(tl.arange(0, _LANES), pair * _LANES)
        w0, w1, w2, w3 = _philox(low, high, key0, key1, parameter, purpose)
        at = pair * 2 * _TILE - start + tl.arange(0, _LANES)
        for half in tl.static_range(2):
            _store(out, count, at, ((w0 >> (16 * half)) & 0xFFFF).to(tl.int32))
            _store(out, count, at + _LANES, ((w1 >> (16 * half)) & 0xFFFF).to(tl.int32))
            _store(out, count, at + 2 * _LANES, ((w2 >> (16 * half)) & 0xFFFF).to(tl.int32))
            _store(out, count, at + 3 * _LANES, ((w3 >> (16 * half)) & 0xFFFF).to(tl.int32))
            at += _TILE

    @_jit
    def _normals(out, count, start, first, key0, key1, parameter, purpose):
        tile = first.to(tl.int64) + tl.program_id(0)
        low, high = _counters(tl.arange(0, _LANES), tile * _LANES)
        w0, w1, w2, w3 = _philox(low, high, key0, key1, parameter, purpose)
        at = tile * _TILE - start + tl.arange(0, _LANES)
        x, y = _box_muller(w0, w1)
        _store(out, count, at, x)
        _store(out, count, at + _LANES, y)
        x, y = _box_muller(w2, w3)
        _store(out, count, at + 2 * _LANES, x)
        _store(out, count, at + 3 * _LANES, y)

    @_jit
    def _signs(out, count, start, first, key0, key1, parameter, purpose):
        block = first.to(tl.int64) + tl.program_id(0)
        low, high = _counters(tl.arange(0, _LANES), block // 4 * _LANES)
        w0, w1, w2, w3 = _philox(low, high, key0, key1, parameter, purpose)
        plane = block % 4
        w = tl.where(plane == 0, w0, tl.where(plane == 1, w1, tl.where(plane == 2, w2, w3)))
        bit, lane = tl.arange(0, 32), tl.arange(0, _LANES)
        set_bits = (w[None, :] >> bit[:, None].to(tl.uint32)) & 1
        at = block * _SIGN_BLOCK - start + bit[:, None] * _LANES + lane[None, :]
        _store(out, count, at, 1.0 - 2.0 * set_bits.to(tl.float32))

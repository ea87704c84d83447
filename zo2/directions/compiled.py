"""The streams of `words` and `normals` compiled for the CPU with numba: the same bits, faster.

numba is optional; without it the torch definitions are used. Each kernel makes whole tiles into
a buffer that stays in the first-level cache and copies out the part that was asked for. Work
is spread over numba's threads, as many as torch uses.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import torch

from zo2.directions import normals
from zo2.directions.words import LANES, MULTIPLIERS, ROUNDS, SIGN_BLOCK, TILE, WEYL

logger = logging.getLogger("zo2")

try:
    import numba
    import numba.extending
except ImportError:
    numba = None

_PARALLEL_FROM = 32 * TILE  # elements; below this, starting threads costs more than it saves


@functools.cache
def available() -> bool:
    """Whether numba can be used; the first time it cannot, the log says what it would bring."""
    if numba is None:
        logger.info("numba is not installed: noise on the CPU is several times slower.")
        return False
    return True


def fill_halves(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write half words ``start`` .. of a stream into ``out`` (int32, on the CPU)."""
    _run(_halves, _halves_parallel, out.numpy(), seed, parameter, purpose, start)


def fill_normals(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write normals ``start`` .. of a stream into ``out`` (float32, on the CPU)."""
    _run(_normals, _normals_parallel, out.numpy(), seed, parameter, purpose, start)


def fill_signs(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write signs ``start`` .. of a stream into ``out`` (float32 +1 and -1, on the CPU)."""
    _run(_signs, _signs_parallel, out.numpy(), seed, parameter, purpose, start)


def _run(
    serial: Any, parallel: Any, out: np.ndarray, seed: int, parameter: int, purpose: int, start: int
) -> None:
    if out.size == 0:
        return
    threads = 1
    if out.size >= _PARALLEL_FROM:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        _set_threads(threads)
    key0, key1 = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    run = serial if threads == 1 else parallel
    run(out, key0, key1, np.uint32(parameter), np.uint32(purpose), start, threads)


def _set_threads(count: int) -> None:
    """Have numba's kernels run on so many threads, and torch on as many as before.

    Where both use OpenMP, numba's first start of threads would set torch to all of the machine's.
    """
    before = torch.get_num_threads()
    numba.set_num_threads(count)
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


if numba is not None:
    # Kernels are functions of the module and not closures: numba finds them again on its disk.
    _jit = functools.partial(numba.njit, nogil=True, cache=True)
    uint32, uint64, float32 = np.uint32, np.uint64, np.float32
    m0, m1 = uint64(MULTIPLIERS[0]), uint64(MULTIPLIERS[1])
    w0, w1 = uint32(WEYL[0]), uint32(WEYL[1])
    shift32 = uint64(32)
    l0, l1, l2, l3, l4, l5 = (float32(c) for c in normals.LOG_POLYNOMIAL)
    r0, r1, r2 = (float32(c) for c in normals.ROOT_POLYNOMIAL)
    s0, s1, s2, s3 = (float32(c) for c in normals.SIN_POLYNOMIAL)
    c0_, c1_, c2_, c3_ = (float32(c) for c in normals.COS_POLYNOMIAL)
    minus_two_ln2 = float32(normals.MINUS_TWO_LN2)
    exponent_base = np.int32(normals.EXPONENT_BASE)
    exponent_offset = float32(normals.EXPONENT_OFFSET)
    root_guess = np.int32(normals.ROOT_GUESS)
    one, two, half = float32(1.0), float32(2.0), float32(0.5)
    SIGN_TILE = 4 * SIGN_BLOCK

    @numba.extending.intrinsic  # type: ignore[untyped-decorator]
    def fused(typingctx, a, b, c):
        """The sum a b + c, rounded once."""
        return a(a, a, a), lambda _, builder, __, arguments: builder.fma(*arguments)

    @_jit(inline="always")
    def philox_tile(k0, k1, parameter, purpose, tile, w):
        """The words of one tile; see `words.philox`."""
        base = uint64(tile) * uint64(LANES)
        for lane in range(LANES):
            counter = base + uint64(lane)
            c0, c1 = uint32(counter), uint32(counter >> shift32)
            c2, c3 = uint32(parameter), uint32(purpose)
            a, b = uint32(k0), uint32(k1)
            for _ in range(ROUNDS):
                q0, q1 = uint64(c0) * m0, uint64(c2) * m1
                n0 = uint32(q1 >> shift32) ^ c1 ^ a
                n2 = uint32(q0 >> shift32) ^ c3 ^ b
                c0, c1, c2, c3 = n0, uint32(q1), n2, uint32(q0)
                a, b = uint32(a + w0), uint32(b + w1)
            w[lane], w[LANES + lane] = c0, c1
            w[2 * LANES + lane], w[3 * LANES + lane] = c2, c3

    @_jit(inline="always")
    def normals_tile(w, bits, value, out, out_bits):
        """``bits`` and ``value`` are int32 and float32 views of the words ``w``."""
        for pair in range(2):
            first, second = 2 * pair * LANES, (2 * pair + 1) * LANES
            for i in range(first, first + LANES):
                value[i] = float32(w[i]) + half
            for i in range(first, first + LANES):
                out_bits[i] = (bits[i] >> 23) + exponent_base
                bits[i] -= out_bits[i] << 23
            for i in range(first, first + LANES):
                m = value[i]
                a = fused(l0, m, l1)
                a = fused(a, m, l2)
                a = fused(a, m, l3)
                a = fused(a, m, l4)
                a = fused(a, m, l5)
                value[i] = fused(out[i] - exponent_offset, minus_two_ln2, a)
            for i in range(first, first + LANES):
                out_bits[i] = root_guess - (bits[i] >> 1)
            for i in range(first, first + LANES):
                s = value[i] * out[i]
                t = s * out[i]
                out[i] = s * fused(fused(r0, t, r1), t, r2)
            for lane in range(LANES):
                out_bits[first + lane] ^= bits[second + lane] << 31
            for lane in range(LANES):
                r = out[first + lane]
                x = float32(bits[second + lane])
                x2 = x * x
                cosine = fused(fused(fused(c0_, x2, c1_), x2, c2_), x2, c3_)
                sine = fused(fused(fused(s0, x2, s1), x2, s2), x2, s3) * x
                out[first + lane] = r * cosine
                out[second + lane] = r * sine

    @_jit(inline="always")
    def halves_part(out, k0, k1, parameter, purpose, start, begin, end):
        """Pairs of tiles ``begin`` .. ``end`` of half words, as far as ``out`` reaches."""
        w = np.empty(TILE, np.uint32)
        for pair in range(begin, end):
            philox_tile(k0, k1, parameter, purpose, pair, w)
            for half_tile in range(2):
                at = (2 * pair + half_tile) * TILE
                low, high = max(at, start), min(at + TILE, start + out.size)
                shift = uint32(16 * half_tile)
                for i in range(low, high):
                    out[i - start] = np.int32((w[i - at] >> shift) & uint32(0xFFFF))

    @_jit(inline="always")
    def normals_part(out, k0, k1, parameter, purpose, start, begin, end):
        """Tiles ``begin`` .. ``end`` of the stream, as far as ``out`` reaches."""
        w, z = np.empty(TILE, np.uint32), np.empty(TILE, np.float32)
        bits, value = w.view(np.int32), w.view(np.float32)
        for tile in range(begin, end):
            philox_tile(k0, k1, parameter, purpose, tile, w)
            low, high = max(tile * TILE, start), min((tile + 1) * TILE, start + out.size)
            if high - low == TILE:
                part = out[low - start : high - start]
                normals_tile(w, bits, value, part, part.view(np.int32))
            else:
                normals_tile(w, bits, value, z, z.view(np.int32))
                out[low - start : high - start] = z[low - tile * TILE : high - tile * TILE]

    @_jit(inline="always")
    def signs_part(out, k0, k1, parameter, purpose, start, begin, end):
        """Here a tile is one Philox tile too: 4 planes of 32 * LANES signs each."""
        w, z = np.empty(TILE, np.uint32), np.empty(LANES, np.float32)
        for tile in range(begin, end):
            philox_tile(k0, k1, parameter, purpose, tile, w)
            for plane in range(4):
                for bit in range(32):
                    at = (tile * 4 + plane) * SIGN_BLOCK + bit * LANES
                    low, high = max(at, start), min(at + LANES, start + out.size)
                    if high <= low:
                        continue
                    if high - low == LANES:
                        row = out[low - start : high - start]
                        for lane in range(LANES):
                            sign = (w[plane * LANES + lane] >> uint32(bit)) & uint32(1)
                            row[lane] = one - two * float32(sign)
                    else:
                        for lane in range(LANES):
                            sign = (w[plane * LANES + lane] >> uint32(bit)) & uint32(1)
                            z[lane] = one - two * float32(sign)
                        out[low - start : high - start] = z[low - at : high - at]

    @_jit
    def _halves(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // (2 * TILE), -(-(start + out.size) // (2 * TILE))
        halves_part(out, k0, k1, parameter, purpose, start, first, last)

    @_jit(parallel=True)
    def _halves_parallel(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // (2 * TILE), -(-(start + out.size) // (2 * TILE))
        share = -(-(last - first) // threads)
        for thread in numba.prange(threads):
            begin = first + thread * share
            end = min(begin + share, last)
            halves_part(out, k0, k1, parameter, purpose, start, begin, end)

    @_jit
    def _normals(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // TILE, -(-(start + out.size) // TILE)
        normals_part(out, k0, k1, parameter, purpose, start, first, last)

    @_jit(parallel=True)
    def _normals_parallel(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // TILE, -(-(start + out.size) // TILE)
        share = -(-(last - first) // threads)
        for thread in numba.prange(threads):
            begin = first + thread * share
            end = min(begin + share, last)
            normals_part(out, k0, k1, parameter, purpose, start, begin, end)

    @_jit
    def _signs(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // SIGN_TILE, -(-(start + out.size) // SIGN_TILE)
        signs_part(out, k0, k1, parameter, purpose, start, first, last)

    @_jit(parallel=True)
    def _signs_parallel(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // SIGN_TILE, -(-(start + out.size) // SIGN_TILE)
        share = -(-(last - first) // threads)
        for thread in numba.prange(threads):
            begin = first + thread * share
            end = min(begin + share, last)
            signs_part(out, k0, k1, parameter, purpose, start, begin, end)

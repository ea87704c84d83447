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


def fill_words(out: torch.Tensor, seed: int, parameter: int, purpose: int, start: int) -> None:
    """Write words ``start`` .. of a stream into ``out`` (int32, the words' bits; on the CPU)."""
    _run(_words, _words_parallel, out.numpy().view(np.uint32), seed, parameter, purpose, start)


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
        numba.set_num_threads(threads)
    key0, key1 = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    run = serial if threads == 1 else parallel
    run(out, key0, key1, np.uint32(parameter), np.uint32(purpose), start, threads)


if numba is not None:
    # Kernels are functions of the module and not closures: numba finds them again on its disk.
    _jit = functools.partial(numba.njit, nogil=True, cache=True)
    uint32, uint64, float32 = np.uint32, np.uint64, np.float32
    m0, m1 = uint64(MULTIPLIERS[0]), uint64(MULTIPLIERS[1])
    w0, w1 = uint32(WEYL[0]), uint32(WEYL[1])
    shift32 = uint64(32)
    p0, p1, p2, p3, p4, p5, p6, p7, p8 = (float32(c) for c in normals.LOG_POLYNOMIAL)
    s0, s1, s2 = (float32(c) for c in normals.SIN_POLYNOMIAL)
    c0_, c1_, c2_ = (float32(c) for c in normals.COS_POLYNOMIAL)
    ln2_high, ln2_low = float32(normals.LN2_HIGH), float32(normals.LN2_LOW)
    half_pi = float32(normals.HALF_PI)
    u_scale, u_offset = float32(normals.UNIFORM_SCALE), float32(normals.UNIFORM_OFFSET)
    sqrt_half = normals.SQRT_HALF_BITS
    one, two, half = float32(1.0), float32(2.0), float32(0.5)
    t_scale = float32(2.0**-24)
    SIGN_TILE = 4 * SIGN_BLOCK

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
    def normals_tile(w, bits, value, out):
        """``bits`` and ``value`` are int32 and float32 views of the words ``w``."""
        for pair in range(2):
            first, second = 2 * pair * LANES, (2 * pair + 1) * LANES
            for i in range(first, first + LANES):
                value[i] = float32(w[i]) * u_scale + u_offset
            for i in range(first, first + LANES):
                exponent = (bits[i] - sqrt_half) >> 23
                bits[i] = bits[i] - (exponent << 23)
                out[i] = float32(exponent)
            for lane in range(LANES):
                m, e = value[first + lane] - one, out[first + lane]
                square = m * m
                p = p0 * m + p1
                p = p * m + p2
                p = p * m + p3
                p = p * m + p4
                p = p * m + p5
                p = p * m + p6
                p = p * m + p7
                p = p * m + p8
                y = p * m * square
                y = y + e * ln2_low
                y = y - square * half
                r = np.sqrt((m + y + e * ln2_high) * -two)
                word = w[second + lane]
                quadrant = word >> uint32(30)
                t = float32(uint32(word << uint32(2)) >> uint32(8)) * t_scale - half
                t = t * half_pi
                t2 = t * t
                sine = ((s0 * t2 + s1) * t2 + s2) * t2 * t + t
                cosine = ((c0_ * t2 + c1_) * t2 + c2_) * t2 * t2 - t2 * half + one
                odd = (quadrant & uint32(1)) != 0
                x = sine if odd else cosine
                y = cosine if odd else sine
                x = -x if ((quadrant + uint32(1)) & uint32(2)) != 0 else x
                y = -y if (quadrant & uint32(2)) != 0 else y
                out[first + lane] = r * x
                out[second + lane] = r * y

    @_jit(inline="always")
    def words_part(out, k0, k1, parameter, purpose, start, begin, end):
        """Tiles ``begin`` .. ``end`` of the stream, as far as ``out`` reaches."""
        w = np.empty(TILE, np.uint32)
        for tile in range(begin, end):
            philox_tile(k0, k1, parameter, purpose, tile, w)
            low, high = max(tile * TILE, start), min((tile + 1) * TILE, start + out.size)
            out[low - start : high - start] = w[low - tile * TILE : high - tile * TILE]

    @_jit(inline="always")
    def normals_part(out, k0, k1, parameter, purpose, start, begin, end):
        """Tiles ``begin`` .. ``end`` of the stream, as far as ``out`` reaches."""
        w, z = np.empty(TILE, np.uint32), np.empty(TILE, np.float32)
        bits, value = w.view(np.int32), w.view(np.float32)
        for tile in range(begin, end):
            philox_tile(k0, k1, parameter, purpose, tile, w)
            low, high = max(tile * TILE, start), min((tile + 1) * TILE, start + out.size)
            if high - low == TILE:
                normals_tile(w, bits, value, out[low - start : high - start])
            else:
                normals_tile(w, bits, value, z)
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
    def _words(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // TILE, -(-(start + out.size) // TILE)
        words_part(out, k0, k1, parameter, purpose, start, first, last)

    @_jit(parallel=True)
    def _words_parallel(out, k0, k1, parameter, purpose, start, threads):
        first, last = start // TILE, -(-(start + out.size) // TILE)
        share = -(-(last - first) // threads)
        for thread in numba.prange(threads):
            begin = first + thread * share
            end = min(begin + share, last)
            words_part(out, k0, k1, parameter, purpose, start, begin, end)

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

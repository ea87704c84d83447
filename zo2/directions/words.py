"""The one source of randomness: an addressable stream of 32-bit words from Philox 4x32-7.

Philox is the counter-based generator of Salmon, Moraes, Dror and Shaw (SC 2011). A stream is
named by (seed, parameter, purpose); word i of it is a pure function of those and i:

    tile, rest  = divmod(i, 1024)          a tile is 256 counters of 4 words each
    plane, lane = divmod(rest, 256)
    word        = philox(counter=(tile * 256 + lane, parameter, purpose), key=seed)[plane]

Planes make consecutive words come from consecutive counters, which vectorises on CPUs and
coalesces on GPUs. A stream of random bits packs 32 signs into a word, again in planes: sign e
is bit (e % 8192) // 256 of word (e // 8192) * 256 + e % 256. Half words, enough to round by,
come two from a word in the same way: half i is the lower half (then, for the next tile, the
upper one) of word (i // 2048) * 1024 + i % 1024.

This file is the definition, in plain torch operations that run on any device;
`zo2.directions.compiled` computes the same bits faster on a CPU.
"""

from __future__ import annotations

import enum
import math

import torch

LANES = 256
TILE = 4 * LANES
SIGN_BLOCK = 32 * LANES
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
# Seven are the fewest that pass all of TestU01's BigCrush. The authors' default is ten, a margin
# for what those tests do not see; directions ask for less than they do see: no more than that
# elements have the right moments and no correlation.
ROUNDS = 7
_LOW = 0xFFFFFFFF


class Purpose(enum.IntEnum):
    """What a stream is used for; streams of different purpose are independent."""

    NORMAL = 0
    SIGN = 1
    ROW_SIGN = 2
    COLUMN_SIGN = 3
    ROUNDING = 4


def words(
    seed: int, parameter: int, purpose: int, start: int, count: int, device: torch.device
) -> torch.Tensor:
    """Words ``start`` .. ``start + count`` of a stream, as int64 values in 0 .. 2**32 - 1."""
    first, last = start // TILE, math.ceil((start + count) / TILE)
    tiles = torch.arange(first * LANES, last * LANES, dtype=torch.int64, device=device)
    planes = torch.stack(philox(seed, parameter, purpose, tiles))  # (4, tiles * LANES)
    stream = planes.view(4, -1, LANES).transpose(0, 1).reshape(-1)
    offset = start - first * TILE
    return stream[offset : offset + count]


def halves(
    seed: int, parameter: int, purpose: int, start: int, count: int, device: torch.device
) -> torch.Tensor:
    """Half words ``start`` .. ``start + count`` of a stream, as int64 values in 0 .. 2**16 - 1."""
    first, last = start // (2 * TILE), math.ceil((start + count) / (2 * TILE))
    whole = words(seed, parameter, purpose, first * TILE, (last - first) * TILE, device)
    shifts = torch.tensor([[0], [16]], device=device)
    both = (whole.view(-1, 1, TILE) >> shifts) & 0xFFFF  # (pairs, 2, TILE)
    offset = start - first * 2 * TILE
    return both.reshape(-1)[offset : offset + count]


def philox(
    seed: int, parameter: int, purpose: int, counter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox 4x32-7 of counters (counter low, counter high, parameter, purpose), key = seed.

    Products of two 32-bit words wrap around in int64; the bits are those of the unsigned
    product, and the mask after the shift removes the sign's copies.
    """
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.full_like(counter, parameter), torch.full_like(counter, purpose)
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & _LOW, (k1 + WEYL[1]) & _LOW
    return c0, c1, c2, c3


def signs(
    seed: int, parameter: int, purpose: int, start: int, count: int, device: torch.device
) -> torch.Tensor:
    """Signs ``start`` .. ``start + count`` of a stream, as float32 values +1 and -1."""
    first, last = start // SIGN_BLOCK, math.ceil((start + count) / SIGN_BLOCK)
    packed = words(seed, parameter, purpose, first * LANES, (last - first) * LANES, device)
    shifts = torch.arange(32, device=device).view(1, 32, 1)
    bits = (packed.view(-1, 1, LANES) >> shifts) & 1  # (blocks, 32, LANES)
    offset = start - first * SIGN_BLOCK
    return 1.0 - 2.0 * bits.reshape(-1)[offset : offset + count].float()

"""Seeds from seeds: an independent 63-bit seed for every step of a run and direction of a step."""

from __future__ import annotations

_MASK = 2**64 - 1


def child_seed(seed: int, index: int) -> int:
    """The ``index``-th seed below ``seed``, in 0 .. 2**63 - 1.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied twice so that
    neighbouring seeds and neighbouring indices give unrelated results.
    """
    return _mix(_mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) >> 1


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)

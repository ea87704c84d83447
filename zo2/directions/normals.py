"""Standard normals from random words: the Box-Muller transform in plain float32 arithmetic.

Logarithm, root, sine and cosine are polynomials no longer than the noise needs: a radius r is
right to 3.3e-5 or, from r = 1, to 2.3e-5 of itself (below 0.03 to 1.1e-6 over itself), a cosine to
7.1e-6 and a sine to 8e-7. Over all words, that leaves the variance of z at 1 to 1.2e-7, its
fourth moment at 3 to 2e-7 of it and its sixth at 15 to 2e-6.

Nothing is used but additions, multiplications and, where `_fused` says so, fused multiply-adds, so
every backend that rounds each of them as IEEE 754 asks gives the same bits.
"""

from __future__ import annotations

import math

import torch


def _singles(*values: float) -> list[float]:
    """The float32 numbers nearest to ``values``."""
    return torch.tensor(values, dtype=torch.float32).tolist()


# Polynomials have the highest power first and are minimax ones, of those that keep the moments.

# -2 ln m for 1 <= m < 2. It is weighted so that the radius errs by as much everywhere, and its ends
# leave no square of a radius at or below zero.
LOG_POLYNOMIAL = _singles(
    -0.0556358583, 0.529000103, -2.12050152, 4.7216024, -6.91788101, 3.84341621
)  # fmt: skip
[MINUS_TWO_LN2] = _singles(-2 * math.log(2))
# A float32's exponent at the end of the bits of 2**23 gives, as a float, that number plus the
# exponent. Moved back it has lost those bits, and taken from the float32's it leaves the mantissa;
# 512 - 385 more are the exponent of 1.
EXPONENT_BASE = 0x4B000000 + 385
EXPONENT_OFFSET = 2.0**23 + 385 + 127 + 32
# Less half of a's bits, these are the bits of y, a guess at 1 / sqrt(a) such that t = a y² is in
# 3/4 .. 27/32; there the polynomial is 1 / sqrt(t).
ROOT_GUESS = 0x5F200000
# sin(x pi / 2) and cos(x pi / 2) for |x| <= 1, in powers of the whole number 2**31 x, which saves a
# multiplication. Their coefficients would be too small for float32, so sine and cosine are made
# _SHIFT times larger, and the radius as much smaller.
_TURN, _SHIFT = 2.0**-31, 2.0**110
ROOT_POLYNOMIAL = _singles(
    0.663150661 / _SHIFT, -1.76092182 / _SHIFT, 2.10234658 / _SHIFT
)  # fmt: skip
SIN_POLYNOMIAL = _singles(
    -0.00433181129 * _SHIFT * _TURN**7, 0.0794322955 * _SHIFT * _TURN**5,
    -0.645892062 * _SHIFT * _TURN**3, 1.57079097 * _SHIFT * _TURN,
)  # fmt: skip
COS_POLYNOMIAL = _singles(
    -0.0191085022 * _SHIFT * _TURN**6, 0.252601043 * _SHIFT * _TURN**4,
    -1.23349339 * _SHIFT * _TURN**2, 0.999993901 * _SHIFT,
)  # fmt: skip


def box_muller(radius: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent standard normals (float32) from two tensors of words (int64).

    The radius sqrt(-2 ln u) uses u = (word + 1/2) / 2**32, so |z| reaches 6.8. The angle is one
    of a quarter of a turn to either side of 0, from the word as a signed number; its lowest bit
    turns that by half a turn.
    """
    r = _root(_minus_two_ln(radius.float() + 0.5))
    r = torch.where((angle & 1).bool(), -r, r)
    x = angle.to(torch.int32).float()
    x2 = x * x
    return r * _polynomial(COS_POLYNOMIAL, x2), r * (_polynomial(SIN_POLYNOMIAL, x2) * x)


def _minus_two_ln(u: torch.Tensor) -> torch.Tensor:
    """-2 ln(u / 2**32)."""
    bits = u.view(torch.int32)
    exponent = (bits >> 23) + EXPONENT_BASE
    m = (bits - (exponent << 23)).view(torch.float32)
    exponent = exponent.view(torch.float32) - EXPONENT_OFFSET
    return _fused(exponent, MINUS_TWO_LN2, _polynomial(LOG_POLYNOMIAL, m))


def _root(a: torch.Tensor) -> torch.Tensor:
    """sqrt(a) / _SHIFT, for a > 0."""
    y = (ROOT_GUESS - (a.view(torch.int32) >> 1)).view(torch.float32)
    s = a * y
    return s * _polynomial(ROOT_POLYNOMIAL, s * y)


def _polynomial(coefficients: list[float], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(value, x, coefficient)
    return value


def _fused(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """The sum a b + c, rounded once.

    The product is exact in double precision. So is the sum in the logarithm and the root, where it
    fits into 53 bits:

        -2 ln m     values are multiples of 2**-28, then of 2**-25 and last of 2**-22, and m of
                    2**-23; sums are below 1, then below 4
        exponent    a multiple of 2**-23 is added to one of 2**-45; the sum is below 64
        root        but for _SHIFT, t and its coefficient are multiples of 2**-24, the next value
                    of 2**-23; sums are below 4

    The sum in sine and cosine may be rounded twice. For no word there is does that make a
    difference: a test compares all of them.
    """
    return (a.double() * b + c).float()

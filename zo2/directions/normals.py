"""Standard normals from random words: the Box-Muller transform in plain float32 arithmetic.

Logarithm, sine and cosine are the single-precision polynomials of the Cephes library (S. Moshier;
sine and cosine to about 1e-7, logarithm to 1 ulp), written with separate multiplications and
additions. Every backend that rounds each operation as IEEE 754 asks gives the same bits.
"""

from __future__ import annotations

import math

import torch

# ln(1 + m) = m - m²/2 + m³ P(m), for sqrt(1/2) - 1 <= m < sqrt(2) - 1
LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts
SQRT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as a float32
# sin t = t + t³ P(t²) and cos t = 1 - t²/2 + t⁴ P(t²), for |t| <= pi/4
SIN_POLYNOMIAL = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_POLYNOMIAL = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
HALF_PI = math.pi / 2
UNIFORM_SCALE, UNIFORM_OFFSET = 2.0**-32, 2.0**-33


def box_muller(radius: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent standard normals (float32) from two tensors of words (int64).

    The radius sqrt(-2 ln u) uses u = (word + 1/2) / 2**32, so |z| reaches 6.7; the angle uses
    the top two bits as the quadrant and the next 24 as the position within it.
    """
    u = radius.float() * UNIFORM_SCALE + UNIFORM_OFFSET
    r = (_log(u) * -2.0).double().sqrt().float()  # torch's float32 sqrt is 1 ulp off on some CPUs
    quadrant = angle >> 30
    t = (((angle << 2) & 0xFFFFFFFF) >> 8).float() * 2.0**-24 - 0.5
    t = t * HALF_PI
    t2 = t * t
    sine = _polynomial(SIN_POLYNOMIAL, t2) * t2 * t + t
    cosine = _polynomial(COS_POLYNOMIAL, t2) * t2 * t2 - t2 * 0.5 + 1.0
    odd = (quadrant & 1).bool()
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    x = torch.where(((quadrant + 1) & 2).bool(), -x, x)
    y = torch.where((quadrant & 2).bool(), -y, y)
    return r * x, r * y


def _log(u: torch.Tensor) -> torch.Tensor:
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).view(torch.float32) - 1.0
    e = exponent.float()
    square = m * m
    y = _polynomial(LOG_POLYNOMIAL, m) * m * square
    y = y + e * LN2_LOW
    y = y - square * 0.5
    return m + y + e * LN2_HIGH


def _polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value

"""Random directions z as a pure function of (seed, parameter, element index).

Nothing here has state: any range of any parameter's z can be made alone, on any device, and is
the same bits whatever asks for it. A new family is one file like `zo2.directions.gaussian`.
"""

from __future__ import annotations

from zo2.directions.base import Family, ParameterShape, get_family, register
from zo2.directions.gaussian import Gaussian
from zo2.directions.ones import Ones
from zo2.directions.rademacher import Rademacher
from zo2.directions.rank1 import Rank1

__all__ = [
    "Family",
    "Gaussian",
    "Ones",
    "ParameterShape",
    "Rademacher",
    "Rank1",
    "get_family",
    "register",
]

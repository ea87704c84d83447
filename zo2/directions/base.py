"""What a family of directions is to the engine."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from zo2.errors import ConfigError


@dataclass(frozen=True)
class ParameterShape:
    """What z depends on besides the seed: which parameter of the model, and its shape."""

    index: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Two dimensions or more; leading ones count matrices (a stack of experts)."""
        return len(self.shape) >= 2


class Family(ABC):
    """A distribution of z with mean 0 and E[z zᵀ] = identity."""

    @abstractmethod
    def fill(self, out: torch.Tensor, seed: int, parameter: ParameterShape, start: int) -> None:
        """Write elements ``start`` .. ``start + len(out)`` of the flattened z into ``out``.

        Args:
            out: 1-D contiguous float32 tensor, on any device.
            seed: the direction's seed, 0 .. 2**63 - 1.
            parameter: the parameter whose z is asked for.
            start: index of the first element.
        """

    def accumulate(
        self,
        out: torch.Tensor,
        terms: Sequence[tuple[int, float]],
        parameter: ParameterShape,
        start: int,
    ) -> None:
        """Write sum_k coefficient_k * z(seed_k) over the same range into ``out`` (float32)."""
        (seed, coefficient), *rest = terms
        self.fill(out, seed, parameter, start)
        out.mul_(coefficient)
        if rest:
            z = torch.empty_like(out)
            for seed, coefficient in rest:
                self.fill(z, seed, parameter, start)
                out.add_(z.mul_(coefficient))


_FAMILIES: dict[str, Callable[[], Family]] = {}
F = TypeVar("F", bound=Callable[[], Family])


def register(name: str) -> Callable[[F], F]:
    """Class decorator: make a family available as ``ZOConfig(direction=name)``."""

    def add(factory: F) -> F:
        _FAMILIES[name] = factory
        return factory

    return add


def get_family(name: str) -> Family:
    """The family registered under ``name``."""
    if name not in _FAMILIES:
        near = difflib.get_close_matches(name, _FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"Unknown direction {name!r}: choose one of {', '.join(sorted(_FAMILIES))}{hint}"
        )
    return _FAMILIES[name]()

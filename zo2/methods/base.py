"""What a method is to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from zo2.config import ZOSettings, register_settings
from zo2.errors import ConfigError


@dataclass(frozen=True)
class Perturbation:
    """Weights W + scale * z(seed); ``scale`` 0 stands for the weights themselves."""

    seed: int = 0
    scale: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """One term of the gradient estimate: coefficient * z(seed)."""

    seed: int
    coefficient: float


class Method(Protocol):
    """Which passes make a step, and what their losses say about the gradient."""

    def perturbations(self, seed: int, eps: float) -> list[Perturbation]:
        """The perturbations whose losses a step needs; ``seed`` is the step's own."""
        ...

    def estimate(
        self, perturbations: Sequence[Perturbation], losses: Sequence[float], eps: float
    ) -> list[Estimate]:
        """The gradient estimate sum_i coefficient_i * z(seed_i); an update is -lr times it."""
        ...


_METHODS: dict[str, Callable[[ZOSettings], Method]] = {}
F = TypeVar("F", bound=Callable[[ZOSettings], Method])


def register(name: str, settings: type[ZOSettings] = ZOSettings) -> Callable[[F], F]:
    """Class decorator: make a method available as ``ZOConfig(name, ...)``.

    Args:
        name: the method's name.
        settings: a dataclass that adds the method's own settings to the common ones.
    """

    def add(factory: F) -> F:
        _METHODS[name] = factory
        register_settings(name, settings)
        return factory

    return add


def get_method(config: ZOSettings) -> Method:
    """The method that ``config.zo_method`` names."""
    if config.zo_method not in _METHODS:
        raise ConfigError(
            f"Unknown method {config.zo_method!r}; choose one of {', '.join(sorted(_METHODS))}."
        )
    return _METHODS[config.zo_method](config)

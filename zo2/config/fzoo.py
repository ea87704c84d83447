"""FZOO: n one-sided directions per step, scaled by the spread of their losses (ICLR 2026)."""

from __future__ import annotations

from dataclasses import dataclass, field

from zo2.config.base import ZOSettings
from zo2.errors import ConfigError


@dataclass
class FZOOConfig(ZOSettings):
    """Settings of FZOO; see `ZOSettings`.

    Attributes:
        directions: number n of directions per step, at least 2; a step is n + 1 passes.
    """

    zo_method: str = field(default="fzoo", init=False)
    direction: str = "rademacher"
    directions: int = 8

    def validate(self) -> None:
        super().validate()
        if not isinstance(self.directions, int) or self.directions < 2:
            raise ConfigError(
                f"directions must be an integer of at least 2, not {self.directions!r}: FZOO "
                "divides by the standard deviation of the directions' losses."
            )

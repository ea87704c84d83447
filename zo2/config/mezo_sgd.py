"""MeZO-SGD: one direction per step, measured on both sides (arXiv 2305.17333, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from zo2.config.base import ZOSettings


@dataclass
class MeZOSGDConfig(ZOSettings):
    """Settings of MeZO-SGD; see `ZOSettings`."""

    zo_method: str = field(default="mezo-sgd", init=False)

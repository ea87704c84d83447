"""A small GPT to study zeroth-order training with."""

from __future__ import annotations

from zo2.model.nanogpt.model import GPT, GPTConfig, GPTConfigs

__all__ = ["GPT", "GPTConfig", "GPTConfigs"]

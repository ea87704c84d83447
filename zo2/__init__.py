"""Zeroth-order fine-tuning of language models that are larger than GPU memory.

>>> import zo2
>>> model = zo2.prepare(model, zo2.ZOConfig(lr=1e-6))
>>> loss = model(input_ids=ids, labels=ids)  # one step
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zo2.attach import prepare, release, zo_hf_init
    from zo2.config import FZOOConfig, MeZOSGDConfig, ZOConfig
    from zo2.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DeviceMemoryError,
        HostMemoryError,
        ModelError,
        NonFiniteLossError,
        ZO2Error,
    )

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "zo2.errors",
    "ConfigError": "zo2.errors",
    "DataError": "zo2.errors",
    "DeviceMemoryError": "zo2.errors",
    "FZOOConfig": "zo2.config",
    "HostMemoryError": "zo2.errors",
    "MeZOSGDConfig": "zo2.config",
    "ModelError": "zo2.errors",
    "NonFiniteLossError": "zo2.errors",
    "ZO2Error": "zo2.errors",
    "ZOConfig": "zo2.config",
    "prepare": "zo2.attach",
    "release": "zo2.attach",
    "zo_hf_init": "zo2.attach",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceMemoryError",
    "FZOOConfig",
    "HostMemoryError",
    "MeZOSGDConfig",
    "ModelError",
    "NonFiniteLossError",
    "ZO2Error",
    "ZOConfig",
    "__version__",
    "prepare",
    "release",
    "zo_hf_init",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import zo2`` stays quick and does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zo2' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

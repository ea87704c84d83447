"""`ZOConfig`: settings of a method, chosen by the method's name."""

from __future__ import annotations

import difflib
from typing import Any

from zo2.config.base import ZOSettings
from zo2.config.fzoo import FZOOConfig
from zo2.config.mezo_sgd import MeZOSGDConfig
from zo2.errors import ConfigError

__all__ = ["FZOOConfig", "MeZOSGDConfig", "ZOConfig", "ZOSettings", "register_settings"]

_CONFIGS: dict[str, type[ZOSettings]] = {"mezo-sgd": MeZOSGDConfig, "fzoo": FZOOConfig}


def register_settings(method: str, settings: type[ZOSettings]) -> None:
    """Let ``ZOConfig(method, ...)`` make ``settings``; `zo2.methods.register` calls this."""
    _CONFIGS[method] = settings


def ZOConfig(method: str = "mezo-sgd", **settings: Any) -> ZOSettings:  # noqa: N802
    """Settings for ``method`` (``"mezo-sgd"``, ``"fzoo"`` or one that was registered).

    Keywords are the fields of `ZOSettings`, and what the method adds to them.

    Raises:
        ConfigError: unknown method, unknown setting (the nearest name is given), or a value
            that cannot work.
    """
    if method not in _CONFIGS:
        raise ConfigError(f"Unknown method {method!r}; choose one of {', '.join(_CONFIGS)}.")
    config_class = _CONFIGS[method]
    for name in settings:
        if name not in config_class.names():
            near = difflib.get_close_matches(name, config_class.names(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{method} has no setting {name!r}.{hint}")
    config = config_class(**settings)
    config.zo_method = method
    config.validate()
    return config

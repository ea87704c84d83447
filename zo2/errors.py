"""Every error zo2 raises on purpose. Each message names the cause and the next step."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "ModelError", "NonFiniteLossError", "ZO2Error"]


class ZO2Error(Exception):
    """Base class of all errors that zo2 raises on purpose."""


class ConfigError(ZO2Error, ValueError):
    """A setting has a value that cannot work."""


class DataError(ZO2Error, ValueError):
    """A data file or a batch cannot be used."""


class ModelError(ZO2Error, RuntimeError):
    """The model cannot be trained as it is (quantised, already spread over devices, ...)."""


class NonFiniteLossError(ZO2Error, ArithmeticError):
    """A loss was NaN or infinite; the step was dropped and the weights are those before it."""

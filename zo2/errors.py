"""Every error zo2 raises on purpose. Each message names the cause and the next step."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceMemoryError",
    "HostMemoryError",
    "ModelError",
    "NonFiniteLossError",
    "ZO2Error",
]


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


class HostMemoryError(ModelError):
    """Host memory ran out or could not be page-locked; the model keeps its weights."""


class DeviceMemoryError(ZO2Error, MemoryError):
    """The working device's memory ran out; the weights are those before the step, or call."""


class CheckpointError(ZO2Error, RuntimeError):
    """A checkpoint could not be saved, or is of another model than the one to go on with."""


def first_line(error: BaseException) -> str:
    """What an error says before it goes into details; its type, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__

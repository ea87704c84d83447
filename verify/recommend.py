"""Which row of the compatibility matrix suits a machine, and why each other one does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verify.machine import Gpu, Machine
from verify.rows import Row
from verify.versions import Version, at_least


@dataclass(frozen=True)
class Choice:
    """A row, the Python it would use, whether it suits the machine, and why or why not."""

    row: Row
    python: str
    suits: bool
    why: str


def runs_on(architectures: Sequence[str], gpu: Gpu) -> bool:
    """Whether a wheel built for ``architectures`` has code that ``gpu`` can run.

    Machine code runs on GPUs of the same major number and the same or a higher minor one; code
    for ``sm_90a`` on that architecture alone; PTX (``compute_90``) on everything newer.
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
        if not digits.isdigit():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if number != digits:  # architecture-specific features are not passed on
            family = number.endswith("f") and built[0] == gpu.capability[0]
            suits = built == gpu.capability or (family and built <= gpu.capability)
        elif kind == "compute":
            suits = built <= gpu.capability
        else:
            suits = built[0] == gpu.capability[0] and built <= gpu.capability
        if suits:
            return True
    return False


def rank(rows: Mapping[str, Row], machine: Machine, pythons: Sequence[str]) -> list[Choice]:
    """Every row with a verdict, the best first.

    Args:
        rows: the matrix.
        machine: where it shall run.
        pythons: versions of Python that can be had, such as ``"3.11"``, the preferred one first.
    """
    judged = [_judge(row, machine, pythons) for row in rows.values()]
    judged.sort(key=lambda pair: pair[1], reverse=True)
    return [choice for choice, _ in judged]


def _judge(row: Row, machine: Machine, pythons: Sequence[str]) -> tuple[Choice, tuple[Any, ...]]:
    python = next((python for python in pythons if python in row.pythons), "")
    suits, full, why = _why(row, machine, python, pythons)
    order = (
        suits,
        Version.parse(row.pins["transformers"]).key,
        full,
        Version.parse(row.pins["torch"]).key,
    )
    return Choice(row, python or row.pythons[0], suits, why), order


def _why(row: Row, machine: Machine, python: str, pythons: Sequence[str]) -> tuple[bool, bool, str]:
    """(suits, the driver is as new as the row's CUDA, why)."""
    if not python:
        have = ", ".join(pythons) or "none"
        return False, False, f"It needs Python {' or '.join(row.pythons)}; available: {have}."
    gpus = machine.gpus or machine.managed
    if not gpus:
        if machine.problem:
            return True, True, f"The GPUs cannot be judged: {machine.problem}"
        return True, True, "No GPU was found; its torch runs on the CPU too."
    for gpu in gpus:
        if not runs_on(row.architectures, gpu):
            return (
                False,
                False,
                (
                    f"Its torch {row.pins['torch']} was built for {', '.join(row.architectures)}; "
                    f"{gpu.name} is {gpu.architecture}."
                ),
            )
    if machine.driver is None:
        return _by_driver_cuda(row, machine)
    if at_least(machine.driver, row.driver):
        return True, True, f"Driver {machine.driver} and the GPUs are all that it needs."
    if at_least(machine.driver, row.driver_minimum):
        return (
            True,
            False,
            (
                f"Driver {machine.driver} runs CUDA {row.cuda} by minor-version compatibility; "
                f"{row.driver} would give all of it."
            ),
        )
    return (
        False,
        False,
        (f"Its CUDA {row.cuda} needs driver {row.driver_minimum} or newer, not {machine.driver}."),
    )


def _by_driver_cuda(row: Row, machine: Machine) -> tuple[bool, bool, str]:
    """Where the driver's release is unknown (WSL without NVML): by the CUDA that it speaks."""
    major, minor = (int(part) for part in row.cuda.split("."))
    have = machine.driver_cuda
    if have is None:
        return False, False, "The NVIDIA driver says neither its release nor which CUDA it speaks."
    shown = f"{have[0]}.{have[1]}"
    if have >= (major, minor):
        return True, True, f"The driver speaks CUDA {shown} and the GPUs are all that it needs."
    if have[0] == major:
        return (
            True,
            False,
            (
                f"The driver speaks CUDA {shown}, which runs CUDA {row.cuda} by minor-version "
                "compatibility."
            ),
        )
    return False, False, f"It needs a driver of CUDA {major}; this one speaks CUDA {shown}."

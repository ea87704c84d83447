"""What machine this is, found out without torch: standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verify.process import Outcome, Prober

LIMIT = 10.0


@dataclass(frozen=True)
class Gpu:
    """One GPU: name, compute capability such as ``(9, 0)``, bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def architecture(self) -> str:
        """Its name for compilers, such as ``"sm_90"``."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Machine:
    """The facts that decide which packages can run here.

    Attributes:
        gpus: the GPUs that programs can use.
        managed: the GPUs that the driver manages, of which some may be hidden from programs.
        driver: the driver's release, such as ``"580.65.06"``; ``None`` if unknown.
        driver_cuda: the newest CUDA that the driver speaks.
        problem: what the driver's libraries complain of; empty if they work or are absent.
        nvidia: whether there is any trace of an NVIDIA GPU or driver.
        container: what kind of container this is, if it looks like one.
        wsl: whether this is Windows' Linux subsystem.
        facts: all of it, as it was recorded.
    """

    gpus: tuple[Gpu, ...] = ()
    managed: tuple[Gpu, ...] = ()
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    problem: str = ""
    nvidia: bool = False
    container: str | None = None
    wsl: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def read(limit: float = LIMIT) -> Machine:
    """Look at this machine, in a process of its own that may take ``limit`` seconds."""
    with Prober("machine") as prober:
        return from_outcome(prober.ask("machine", limit))


def from_outcome(outcome: Outcome) -> Machine:
    """A machine from what became of the probe."""
    if outcome.facts is None:
        return Machine(problem=f"Asking the NVIDIA driver {outcome.ending}.", nvidia=True)
    return from_facts(outcome.facts)


def from_facts(facts: Mapping[str, Any]) -> Machine:
    """A machine from recorded facts."""
    traces = ("cuda_devices", "gpus", "devices", "kernel_module", "driver")
    nvidia = not facts["libcuda"] or any(facts[name] for name in traces)
    return Machine(
        gpus=tuple(_gpu(one) for one in facts["cuda_devices"]),
        managed=tuple(_gpu(one) for one in facts["gpus"] if one["capability"]),
        driver=facts["driver"],
        driver_cuda=tuple(facts["driver_cuda"]) if facts["driver_cuda"] else None,
        problem=_problem(facts) if nvidia else "",
        nvidia=nvidia,
        container=facts["container"],
        wsl=facts["wsl"],
        facts=facts,
    )


def _gpu(facts: Mapping[str, Any]) -> Gpu:
    major, minor = facts["capability"]
    return Gpu(facts["name"], (major, minor), facts["memory"])


def _problem(facts: Mapping[str, Any]) -> str:
    found = (facts["cuda_error"], facts["libcuda"], facts["nvml"])
    return next((text for text in found if text), "")

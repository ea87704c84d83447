"""Loss and memory over the steps of runs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo2 import saving
from zo2.errors import ConfigError, DataError
from zo2.tasks.folder import METRICS, read_json, read_lines

SMOOTHED = 0.05  # share of a curve's steps that a running mean of the loss is over
GIB = 2**30


@dataclass(frozen=True)
class Curve:
    """What a run measured, step by step.

    Attributes:
        name: of the run.
        steps: lines with ``step``, ``loss`` and, of newer runs, ``memory``.
        evaluations: pairs of a step and its figure on dev.
        figure: what that figure is.
    """

    name: str
    steps: list[dict[str, Any]]
    evaluations: list[tuple[int, float]]
    figure: str


def read_curve(run: Path) -> Curve:
    """What ``zo2 run`` or ``zo2 train`` has written in a folder.

    Raises:
        DataError: it has neither's metrics, or no steps.
    """
    try:
        return _curve(run)
    except (KeyError, TypeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"The metrics in {run} were not written by zo2: {reason}.") from error


def _curve(run: Path) -> Curve:
    if (run / METRICS).is_file():
        lines = read_lines(run / METRICS)
        steps = [one for one in lines if "loss" in one]
        evaluated = [(one["step"], one["dev"]) for one in lines if "dev" in one]
    elif (run / saving.METRICS).is_file():
        metrics = read_json(run / saving.METRICS)
        steps = metrics["steps"]
        evaluated = [(one["step"], {"accuracy": one["accuracy"]}) for one in metrics["evals"]]
    elif not run.is_dir():
        raise DataError(f"There is no folder {run}.")
    else:
        raise DataError(f"{run} holds no run: neither {METRICS} nor {saving.METRICS} is in it.")
    if not [(one["step"], one["loss"]) for one in steps]:
        raise DataError(f"{run}: no step was taken, so there is nothing to plot.")
    figure = next(iter(evaluated[0][1])) if evaluated else ""
    return Curve(run.name, steps, [(step, values[figure]) for step, values in evaluated], figure)


def plot(curves: Sequence[Curve], output: Path) -> None:
    """Write a PNG: loss (and its running mean), the figure on dev, and memory over steps.

    Raises:
        ConfigError: matplotlib is missing, or the folder to write to.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"There is no directory {output.parent} to write {output.name} into.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("Plots need the package matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, dev, memory = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        numbers = [one["step"] for one in curve.steps]
        losses = [one["loss"] for one in curve.steps]
        loss.plot(numbers, losses, color=colour, alpha=0.3, linewidth=0.8)
        mean = running_mean(losses, max(1, round(SMOOTHED * len(losses))))
        loss.plot(numbers, mean, color=colour, label=curve.name)
        if curve.evaluations:
            dev.plot(*zip(*curve.evaluations, strict=True), "o-", color=colour, markersize=4)
        used = [one["memory"] / GIB for one in curve.steps if "memory" in one]
        memory.plot(numbers[: len(used)], used, color=colour)
    loss.set_ylabel("training loss (nats)")
    dev.set_ylabel(f"dev {' / '.join(dict.fromkeys(one.figure for one in curves if one.figure))}")
    memory.set_ylabel("peak memory (GiB)")
    memory.set_ylim(0, 1.1 * max(memory.dataLim.y1, 0.1))
    memory.set_xlabel("step")
    memory.xaxis.get_major_locator().set_params(integer=True)
    loss.legend()
    for axes in (loss, dev, memory):
        axes.grid(alpha=0.3)
    aside = output.with_name(f".{output.name}.new")
    try:
        figure.savefig(aside, format="png", dpi=120)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, ``window`` in all where there are as many."""
    return [
        sum(values[max(0, end - window) : end]) / min(window, end)
        for end in range(1, len(values) + 1)
    ]

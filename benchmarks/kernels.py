"""How many weights per second the fused kernels change, beside what memory alone would allow.

    python -m benchmarks.kernels [--weights MILLIONS] [--dtype DTYPE] [--json FILE]

One matrix, as large as those of a block of OPT-13B unless told. Each line is the median of several
launches, timed by events on the GPU; the bound is the bytes that must be read and written over
the rate of a copy within the device, measured first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from zo2.directions import ParameterShape, get_family
from zo2.engine.fused import FusedArithmetic
from zo2.engine.partition import Weight
from zo2.engine.store import Layout
from zo2.engine.updates import Update
from zo2.engine.weights import Changes
from zo2.methods import Perturbation

FAMILIES = ("gaussian", "rademacher", "rank1")
BOTH = (Perturbation(5, 1e-3), Perturbation(5, -1e-3))
ONE = (Update(((7, 1e-4),), 0.0, 11),)
EIGHT = (Update(tuple((seed, 1e-4) for seed in range(8)), 0.0, 11),)
# name: (rounds of updates, perturbed copies, whether weights are stored, passes over memory)
KERNELS = {
    "one perturbed copy": ((), BOTH[:1], False, 2),
    "two copies, one z": ((), BOTH, False, 3),
    "update": ((ONE,), (), True, 2),
    "update and two copies": ((ONE,), BOTH, True, 4),
    "two updates and two copies": ((ONE, ONE), BOTH, False, 3),
    "four updates and two copies": (4 * (ONE,), BOTH, False, 3),
    "update by eight directions": ((EIGHT,), (), True, 2),
}


def seconds(launch: Callable[[], object], repeats: int = 20) -> float:
    """Median time of a launch on the GPU."""
    launch()  # compiles
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(numel: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows of the table."""
    device = torch.device("cuda", 0)
    shape = ParameterShape(0, (numel // 5120, 5120))
    meta = nn.Parameter(torch.empty(shape.shape, device="meta", dtype=dtype))
    layout = Layout([Weight(meta, "weight", shape, decayed=True)])
    base, *outs = (torch.zeros(layout.nbytes, dtype=torch.uint8, device=device) for _ in range(3))
    weights = base.view(dtype).normal_()
    numel = weights.numel()

    def row(kernel: str, family: str, time: float, passes: int) -> dict[str, Any]:
        bound = copy / 2 * passes
        return {"kernel": kernel, "family": family, "giga_per_second": numel / time / 1e9,
                "time_over_bound": time / bound}  # fmt: skip

    copy = seconds(lambda: outs[0].copy_(base))
    rows = []
    for family in FAMILIES:
        arithmetic = FusedArithmetic(get_family(family), True, device)
        for kernel, (rounds, perturbations, write, passes) in KERNELS.items():
            changes = Changes(rounds, perturbations=perturbations)
            targets = list(enumerate(outs[: len(perturbations)]))
            arguments = (layout, base, changes, 0, write, targets)
            time = seconds(lambda: arithmetic.transform(*arguments))  # noqa: B023
            rows.append(row(kernel, family, time, passes))
    z = torch.empty_like(weights)
    time = seconds(lambda: weights.add_(z.normal_(), alpha=1e-3))
    rows.append(row("torch: normal_ and add_", "gaussian", time, 2))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, default=315, help="millions")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; `python -m benchmarks.cpu` measures noise on a CPU")
    rows = measure(int(options.weights * 1e6), getattr(torch, options.dtype))
    table = Table("kernel", "direction", "G weights / s", "time / bound of memory")
    for one in rows:
        table.add_row(one["kernel"], one["family"], f"{one['giga_per_second']:.0f}",
                      f"{one['time_over_bound']:.2f}")  # fmt: skip
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

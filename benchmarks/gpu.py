"""The table of steps on a GPU: each configuration of `benchmarks.step` in a process of its own.

    python -m benchmarks.gpu [--json FILE] [--only ROW ...] [SHAPE ...]

A streamed step is limited by the link (what comes home while as much goes up, at the rate of copies
in both directions at once, and the rest of what goes up at the rate of one direction; both are
measured first) and by the resident step of the same kernels; the last column is the time over the
larger of the two. FILE keeps shapes that it has and that are not measured now.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import mezo
from zo2.planning import link_time

BUDGETS = {
    "opt-1.3b": "1.9GB,2.4GB,4GB",
    "opt-13b": "2.9GB,3.1GB,6GB,12GB,18GB,24GB,40GB",
    "opt-30b": "4.4GB,8GB,16GB,32GB",
}

ROWS = {
    **{f"unfused, {which}": ["--unfused", which] for which in mezo.ARITHMETICS},
    "resident": ["--resident"],
    "streamed": [],
    "streamed, three buffers": ["--slots", "3"],
    "streamed, leaves": ["--unit", "leaf"],
    "budget": [],
}


def step(*options: str) -> dict[str, Any]:
    """What one run of `benchmarks.step` prints."""
    command = [sys.executable, "-m", "benchmarks.step", *options]
    # torch's segments that grow leave less of the device memory unused
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        return {"error": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(shape: str, what: str) -> list[dict[str, Any]]:
    """A row of the table for one shape, or one for each budget."""
    budgets = ["--budget", BUDGETS.get(shape, "16GB")] if what == "budget" else []
    run = step("--shape", shape, *ROWS[what], *budgets)
    return [
        {"what": f"{what} {one['budget']}" if one.get("budget") else what, **one}
        for one in run.get("found", [run])
    ]


def limits(rows: list[dict[str, Any]], link: dict[str, float]) -> list[float]:
    """Of each row, the larger of the link's time for what must move and the resident step's, in
    seconds.
    """
    resident = next((one["seconds"] for one in rows if one["what"] == "resident"), 0.0)
    alone, both = link["up"], link["each of both"]
    return [max(link_time(*_moved(one), alone, both), resident) for one in rows]


def _moved(row: dict[str, Any]) -> tuple[float, float]:
    """Bytes up and home of each step; as many both ways where these were not counted."""
    up = row.get("streamed", 0)
    return up, row.get("home", up)


def show(shape: str, rows: list[dict[str, Any]], link: dict[str, float], console: Console) -> None:
    """Print the table of one shape."""
    columns = "", "s / step", "device, GB", "up, GB", "home, GB", "/ max(link, resident)"
    table = Table(*columns, title=shape)
    for one, limit in zip(rows, limits(rows, link), strict=True):
        if "error" in one:
            table.add_row(one["what"], one["error"])
            continue
        up, home = _moved(one)
        ratio = f"{one['seconds'] / limit:.3f}" if up else ""
        sizes = (f"{size / 1e9:.1f}" for size in (up, home))
        seconds, device = f"{one['seconds']:.4f}", f"{one['device'] / 1e9:.2f}"
        table.add_row(one["what"], seconds, device, *sizes, ratio)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("shapes", nargs="*", default=["opt-1.3b", "opt-13b"])
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    console = Console()
    link = step("--link")
    console.print({name: f"{rate / 1e9:.1f} GB/s" for name, rate in link.items()})
    there = options.json is not None and options.json.exists()
    everything = json.loads(options.json.read_text()) if there else {}
    for shape in options.shapes:
        rows: list[dict[str, Any]] = []
        everything[shape] = {"link": link, "rows": rows}
        for what in options.only:
            rows += measure(shape, what)
            if options.json:
                options.json.write_text(json.dumps(everything, indent=1))
        show(shape, rows, link, console)


if __name__ == "__main__":
    main()

"""Step time over device memory, from what `benchmarks.gpu --json FILE` has measured.

    python -m benchmarks.plot FILE PICTURE.png

Points are steps as measured; the line below them is the larger of the link's time for what must
move and the resident step's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu import limits


def points(rows: list[dict[str, Any]], link: dict[str, float]) -> list[tuple[float, float, float]]:
    """(device memory in GB, seconds, limit in seconds) of the budgets and of the resident step."""
    return sorted(
        (one["device"] / 1e9, one["seconds"], limit)
        for one, limit in zip(rows, limits(rows, link), strict=True)
        if one.get("budget") or one["what"] == "resident"
    )


def draw(measured: dict[str, Any], picture: Path) -> None:
    """One panel for each shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(measured), 3.6), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (shape, found) in zip(panels, measured.items(), strict=True):
        memory, seconds, least = zip(*points(found["rows"], found["link"]), strict=True)
        axes.plot(memory, least, color="0.6", label="max(link, resident step)")
        axes.plot(memory, seconds, "o", markersize=5, label="measured")
        axes.set(title=shape, xlabel="device memory, GB", ylim=(0, 1.1 * max(seconds)))
    figure.axes[0].set_ylabel("s / step")
    figure.axes[0].legend(loc="lower left", frameon=False)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.measured.read_text()), options.picture)


if __name__ == "__main__":
    main()

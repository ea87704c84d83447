"""The rows of the compatibility matrix, as verify needs them: standard library only.

The table itself is ``envs/matrix.toml``. An installed package cannot read it (it is not part of
the wheel, and Python 3.10 has no TOML parser), so ``nox -s lock`` writes what verify needs of the
table and of the locks to ``verify/rows.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROWS_FILE = Path(__file__).with_name("rows.json")


@dataclass(frozen=True)
class Row:
    """One tested combination of packages.

    Attributes:
        name: how commands, locks and images call it.
        why: the reason it exists.
        pythons: versions of Python such as ``"3.11"``, the one of images and conda files first.
        cuda: the CUDA release of torch's wheel, such as ``"12.1"``.
        driver: the driver which that CUDA release shipped with; everything works from here on.
        driver_minimum: the oldest driver on which it runs, by minor-version compatibility.
        architectures: what torch's wheel was compiled for, such as ``"sm_90"``.
        newest: whether this is the row of the newest releases.
        pins: exact versions, by package.
        reasons: why a pin is not the newest release, by package.
        locked: all versions of the row's lock, by version of Python, then by package.
    """

    name: str
    why: str
    pythons: tuple[str, ...]
    cuda: str
    driver: str
    driver_minimum: str
    architectures: tuple[str, ...]
    newest: bool
    pins: Mapping[str, str]
    reasons: Mapping[str, str]
    locked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def lock_name(self, python: str) -> str:
        """The file name of the row's lock for ``python``."""
        return f"{self.name}-py{python.replace('.', '')}.txt"


def load(path: Path = ROWS_FILE) -> dict[str, Row]:
    """The rows, by name, in the order of the table."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {
        name: Row(
            **{
                **values,
                "name": name,
                "pythons": tuple(values["pythons"]),
                "architectures": tuple(values["architectures"]),
            }
        )
        for name, values in rows.items()
    }

"""What the last run of the matrix found, row by row; stored as JSON, shown on the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envs.files import write_whole


@dataclass(frozen=True)
class Outcome:
    """One check in one row: passed or not, a few words, and seconds."""

    passed: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class Difference:
    """A tiny model of one family, trained in this row and in another, see `tests.golden`.

    Attributes:
        against: the other row; None if no row before has the family.
        plain: relative difference of the loss of one forward without zo2, on the same weights.
        losses: largest relative difference of a loss in training; None if the rows lay the
            weights out differently, so that one seed is two directions.
        weights: largest difference of a trained weight over the largest weight, None likewise.
    """

    against: str | None
    plain: float | None
    losses: float | None
    weights: float | None

    @property
    def identical(self) -> bool:
        """Whether all that could be compared has the same bits."""
        return not (self.plain or self.losses or self.weights)


@dataclass(frozen=True)
class RowResult:
    """All checks of one row.

    Attributes:
        date: of the run, ISO.
        python: full version.
        machine: cores, platform and GPU in words.
        lock: first digits of the seal of the lock that was installed.
        outcomes: by check.
        differences: by family of models.
    """

    date: str
    python: str
    machine: str
    lock: str
    outcomes: Mapping[str, Outcome]
    differences: Mapping[str, Difference]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes.values())


@dataclass(frozen=True)
class Results:
    """The last result of every row that was run."""

    rows: Mapping[str, RowResult] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Results:
        """What is stored at ``path``, or no results."""
        if not path.exists():
            return cls()
        return cls({name: _row(values) for name, values in json.loads(path.read_text()).items()})

    def store(self, path: Path) -> None:
        """Write them to ``path``."""
        table = {name: dataclasses.asdict(row) for name, row in self.rows.items()}
        write_whole(path, json.dumps(table, indent=1, sort_keys=True) + "\n")

    def updated(self, name: str, row: RowResult) -> Results:
        """These results, with those of one row replaced."""
        return Results({**self.rows, name: row})


def _row(values: Mapping[str, object]) -> RowResult:
    outcomes = {name: Outcome(**v) for name, v in values["outcomes"].items()}  # type: ignore[attr-defined]
    differences = {n: Difference(**v) for n, v in values["differences"].items()}  # type: ignore[attr-defined]
    return RowResult(**{**values, "outcomes": outcomes, "differences": differences})  # type: ignore[arg-type]

"""In which order failures are mended, and which mends only a second run can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verify.result import Result, Status

EVERY = "*"  # what replaces this replaces every package


@dataclass(frozen=True)
class Plan:
    """Results whose mends are to be made in order, and those whose mends may then be wrong.

    A mend follows from versions. Once an earlier step has put another version in place, it may
    mend nothing, or break what that step has mended, so it is withheld until verify is run again.
    """

    steps: tuple[Result, ...]
    withheld: tuple[Result, ...]

    @property
    def again(self) -> str:
        """What to do after the steps; empty if nothing was withheld."""
        if not self.withheld:
            return ""
        names = ", ".join(dict.fromkeys(result.label for result in self.withheld))
        return f"Then run verify again: what else failed may be gone by then ({names})."


def plan(results: Sequence[Result]) -> Plan:
    """How the failures are mended, and warnings of what decides which packages are seen."""
    failures = [result for result in results if result.status is Status.FAIL]
    concerned = frozenset[str]().union(*(one.replaces | one.follows for one in failures))
    warnings = [
        result
        for result in results
        if result.status is Status.WARN and result.first and result.replaces & concerned
    ]
    steps: dict[tuple[str, str], Result] = {}
    withheld, replaced = [], frozenset[str]()
    for result in sorted([*warnings, *failures], key=lambda one: not one.first):
        if (result.problem, result.fix) in steps:
            continue
        own = result.replaces | result.follows
        if own & replaced or (own and EVERY in replaced):
            withheld.append(result)
        else:
            steps[result.problem, result.fix] = result
            replaced |= result.replaces
    return Plan(tuple(steps.values()), tuple(withheld))

"""The verdict: one line, one exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verify.result import Result, Status


def exit_code(results: Sequence[Result], strict: bool) -> int:
    """0 if nothing failed, else 1; ``strict`` counts warnings as failures."""
    bad = {Status.FAIL, Status.WARN} if strict else {Status.FAIL}
    return int(any(result.status in bad for result in results))


def verdict(results: Sequence[Result], strict: bool) -> str:
    """One line that says whether the installation works."""
    counts = Counter(result.status for result in results)
    numbers = ", ".join(
        f"{counts[status]} {word}"
        for status, word in (
            (Status.PASS, "passed"),
            (Status.WARN, "warned"),
            (Status.FAIL, "failed"),
            (Status.SKIP, "skipped"),
        )
        if counts[status]
    )
    if counts[Status.FAIL]:
        first = next(result for result in results if result.status is Status.FAIL)
        said = f"This installation does not work: {first.problem} ({first.identifier})"
    elif not counts[Status.PASS] and not counts[Status.WARN]:
        said = "Nothing was checked"
    elif exit_code(results, strict):
        said = "This installation works, but warnings count (--strict)"
    else:
        said = "This installation works"
    return f"{said}. {numbers or 'No checks'}."

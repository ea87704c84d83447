"""A run as a document: what `--json` writes, and what the other reports are made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verify.catalogue import CHECKS
from verify.machine import Machine
from verify.report.mending import plan
from verify.report.summary import exit_code, verdict
from verify.result import Result, Status

SCHEMA = 1  # raised when a name or meaning changes; additions leave it


def document(
    results: Sequence[Result],
    machine: Machine,
    *,
    tier: str,
    row: str | None,
    strict: bool,
    started: str,
    seconds: float,
) -> dict[str, Any]:
    """Everything that is known of a run, in what JSON can hold.

    Keys: ``schema``, ``tool``, ``started`` (UTC), ``seconds``, ``tier``, ``row`` (that was asked
    for), ``strict``, ``machine`` (facts), ``counts`` by status, ``verdict``, ``exit_code``,
    ``mend`` (identifiers of the results whose fixes are made in that order, and what to do then)
    and ``results``: for each check ``identifier``, ``group``, ``title``, ``status``, ``have``,
    ``need``, ``problem``, ``why``, ``fix``, ``seconds``, ``facts`` and, where a check broke,
    the last of its ``output``.
    """
    counts = Counter(result.status for result in results)
    mending = plan(results)
    return {
        "schema": SCHEMA,
        "tool": "zo2 verify",
        "started": started,
        "seconds": round(seconds, 1),
        "tier": tier,
        "row": row,
        "strict": strict,
        "machine": dict(machine.facts),
        "counts": {status.value: counts[status] for status in Status},
        "verdict": verdict(results, strict),
        "exit_code": exit_code(results, strict),
        "mend": {"steps": [result.identifier for result in mending.steps], "then": mending.again},
        "results": [
            {
                "identifier": result.identifier,
                "group": result.group,
                "title": CHECKS[result.identifier].title,
                "status": result.status.value,
                "have": result.have,
                "need": result.need,
                "problem": result.problem,
                "why": result.why,
                "fix": result.fix,
                "seconds": result.seconds,
                "facts": dict(result.facts),
                "output": result.output,
            }
            for result in results
        ],
    }


def text(found: Mapping[str, Any]) -> str:
    """A document as JSON."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


class UnreadableError(Exception):
    """A file is not a report of verify."""


def read(path: Path) -> dict[str, Any]:
    """Read what `--json` wrote; raise `UnreadableError` if it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path} is not JSON: give a file that --json wrote.") from error
    if not isinstance(found, dict) or found.get("tool") != "zo2 verify":
        raise UnreadableError(f"{path} is not a report: give a file that --json wrote.")
    if found.get("schema") != SCHEMA:
        raise UnreadableError(
            f"{path} has schema {found.get('schema')}, this verify reads {SCHEMA}: write it again "
            "with this version."
        )
    missing = [name for name in ("machine", "results") if name not in found]
    if missing:
        raise UnreadableError(f"{path} has no {' and no '.join(missing)}: write it again.")
    if wrong := _wrong(found["machine"], found["results"]):
        raise UnreadableError(f"{path} is not as --json wrote it, {wrong}: write it again.")
    return found


def _wrong(machine: Any, results: Any) -> str:
    """What of a report could not be compared; empty if all can."""
    if not isinstance(machine, dict):
        return "the machine is no object"
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        return "the results are no list of objects"
    for index, one in enumerate(results):
        for name, kind in _COMPARED.items():
            if not isinstance(one.get(name), kind):
                return f"result {index} lacks {name!r}"
    return ""


_COMPARED = {"identifier": str, "status": str, "problem": str, "have": str, "facts": dict}

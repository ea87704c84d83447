"""The answer in words, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.version import Version

from verify.explain.answer import Conflict, Explanation
from verify.explain.apply import edits
from verify.explain.corrections import Change
from verify.explain.edges import Demand, Reason
from verify.explain.errors import ExplainError
from verify.explain.requirements import Requirement

SCHEMA = 1  # of the JSON form


def words(
    explanation: Explanation, target: str, also: Mapping[str, tuple[str, str]] | None = None
) -> Iterator[str]:
    """The answer, line by line.

    Args:
        explanation: the answer.
        target: the environment it is for.
        also: versions of a row's lock that would change with it, as (before, after).
    """
    count = _count(len(explanation.requirements), "requirement")
    if not explanation.requirements:
        yield "Nothing is asked for, so there is nothing to resolve."
        return
    if explanation.versions or not explanation.conflicts:
        verb = "resolve" if len(explanation.requirements) > 1 else "resolves"
        yield f"{count} for {target}: {verb}, to {_count(len(explanation.versions), 'package')}."
        yield from (f"Warning: {warning}" for warning in explanation.warnings)
        yield from _chosen(explanation)
        if also:
            yield "Versions that differ from the row's lock:"
            width = max(map(len, also))
            yield from (f"    {n:{width}}  {old} -> {new}" for n, (old, new) in also.items())
        return
    conflicts = explanation.conflicts
    yield f"{count} for {target}: not resolvable, {_count(len(conflicts), 'conflict')}."
    for number, conflict in enumerate(conflicts, 1):
        yield ""
        yield from _conflict(conflict, f"Conflict {number}" if len(conflicts) > 1 else "Conflict")
    if not explanation.all_conflicts:
        yield ""
        yield "There may be more conflicts; the search was stopped here."
    yield ""
    yield from _changes(explanation)


def _chosen(explanation: Explanation) -> Iterator[str]:
    """The versions of what was asked for without saying which."""
    chosen = {
        r.name: explanation.versions[r.name]
        for r in explanation.requirements
        if not r.pinned and explanation.versions.get(r.name)
    }
    if chosen:
        yield "Versions where the choice was open:"
        width = max(map(len, chosen))
        yield from (f"    {name:{width}}  {version}" for name, version in chosen.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# ---- conflicts ------------------------------------------------------------------------------


def _conflict(conflict: Conflict, title: str) -> Iterator[str]:
    members = conflict.requirements
    if len(members) == 1:
        yield f"{title}: this does not resolve, even alone."
    else:
        alone = "each alone does" if len(members) == 2 else "without any one the others do"
        yield f"{title}: these {len(members)} do not resolve together; {alone}."
    width = max(len(str(r)) for r in members)
    for member in members:
        kept = ", kept" if member.keep else ""
        yield f"    {member!s:{width}}  ({place(member)}{kept})"
    for line in _reason(conflict):
        yield f"  {line}"


def place(requirement: Requirement) -> str:
    """Where a requirement comes from."""
    kind = "constraint, " if requirement.constraint else ""
    return f"{kind}{requirement.origin}"


def _reason(conflict: Conflict) -> Iterator[str]:
    why = conflict.reason
    if why.kind == "meet":
        yield meeting(why)
        yield from (line for demand in why.demands if (line := _chain(demand)))
    elif why.kind == "runtime" and why.floor:
        floor = why.floor
        have = next((_have(d) for d in why.demands if d.package == floor.needs), "it is older")
        yield f"It installs, but cannot run: {why.detail} needs {floor.requirement}; {have}."
        yield f"No metadata says so: {floor.why}."
        yield from (line for demand in why.demands if (line := _chain(demand)))
    elif why.kind == "unknown-package":
        guess = f" Did you mean {' or '.join(conflict.nearby)}?" if conflict.nearby else ""
        yield f"The index has no package {why.package}.{guess}"
    elif why.kind == "no-version":
        yield from _no_version(conflict)
    elif why.kind == "yanked":
        versions = why.detail.split(", ")
        verb = "is" if len(versions) == 1 else "are"
        yield (
            f"Of {why.package} only {_listed(versions)} would do, and {verb} yanked: withdrawn by "
            f"its authors. A yanked release counts only if it is pinned: "
            f"{why.package}=={versions[-1]}"
        )
    elif why.kind in ("no-wheel", "source-only", "python") and conflict.nearby:
        release = f"{why.package} {conflict.requirements[0].pinned}"
        yield f"{release} has wheels only for Python {_listed(conflict.nearby)}."
    elif why.kind == "no-wheel":
        yield f"{why.package} has no wheel for this Python and platform."
        yield from why.detail.partition("hint:")[2].strip().splitlines()[:1]
    elif why.kind == "source-only":
        yield (
            f"{why.package} has no wheel in the versions needed, only source, and building runs "
            f"its code. To allow that: --build {why.package}"
        )
    elif why.kind == "python":
        yield f"{why.package} needs Python {why.detail}."
    else:
        yield from _quote(why.detail)


def _no_version(conflict: Conflict) -> Iterator[str]:
    why, pin = conflict.reason, conflict.requirements[0].pinned
    what = f"release {pin}" if pin else "such release"
    near = conflict.nearby
    verb = "is" if len(near) == 1 else "are"
    text = f"{why.package} has no {what} here."
    text += f" The nearest {verb} {_listed(near)}." if near else ""
    if "exclude-newer" in why.detail:
        text += " The date given leaves out later ones."
    yield text
    if pin and pin.local:
        yield (
            f"What follows the + names a build, which its own index has: add that index to the "
            f"file (--extra-index-url), or ask for {pin.public}."
        )


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def meeting(why: Reason) -> str:
    """The two demands that meet, in a sentence."""
    first, second = why.demands
    if first.by is None and second.by is not None:
        first, second = second, first
    return f"{_demand(first, True)}; {_demand(second, first.by is None)}."


def _demand(demand: Demand, name_it: bool) -> str:
    if demand.by:
        return f"{_name(demand.by)} needs {demand.package}{demand.specifier}"
    root = demand.root
    package = f"{demand.package} " if name_it else ""
    if root.constraint:
        return f"{root.origin} limits {demand.package} to {demand.specifier}"
    who = "you" if root.origin.label in ("", "command line") else str(root.origin)
    if who == "installed":
        return f"installed is {package}{root.pinned}"
    pin = root.pinned
    if pin:
        return f"{who} pin{'' if who == 'you' else 's'} {package}{pin}".replace(
            "you pin ", "you pinned "
        )
    return f"{who} ask{'' if who == 'you' else 's'} for {demand.package}{demand.specifier}"


def _name(release: tuple[str, str]) -> str:
    """A release, with its version if it is known: what comes from an address has none."""
    return " ".join(release).rstrip()


def _have(demand: Demand) -> str:
    if demand.root.name == demand.package and demand.root.pinned:
        return f"you pinned {demand.specifier}"
    return f"{demand.package} {demand.specifier} is all that the others allow"


def _chain(demand: Demand) -> str:
    """How a release came in, if the user did not ask for it."""
    if len(demand.chain) < 2:
        return ""
    steps = ", which brings in ".join(map(_name, demand.chain[1:]))
    return f"{demand.root} ({place(demand.root)}) brings in {steps}."


def _quote(refusal: str) -> Iterator[str]:
    yield "The resolver's reasons:"
    for line in refusal.splitlines():
        yield f"  {line.strip()}"


# ---- changes --------------------------------------------------------------------------------


def _changes(explanation: Explanation) -> Iterator[str]:
    changes = explanation.changes
    if not changes:
        yield from _no_change(explanation)
        return
    best = changes[0]
    yield f"Smallest change, moving {_count(len(best.moved), 'requirement')}:"
    yield from _lines(best)
    yield from _diff(best)
    for number, change in enumerate(changes[1:], 2):
        yield ""
        yield f"Or, {number}, moving {_count(len(change.moved), 'requirement')}:"
        yield from _lines(change)
    if not explanation.all_changes:
        yield ""
        yield "There may be other changes, perhaps nearer; the search was stopped here."


def _lines(change: Change) -> Iterator[str]:
    width = max(len(str(new)) for new in change.moved.values())
    for old, new in change.moved.items():
        yield f"    {new!s:{width}}  # was {_short(old)}, {place(old)}"
    installed = [new.text for old, new in change.moved.items() if old.origin.label == "installed"]
    if installed:
        yield f"    pip install {' '.join(installed)}"


def _short(requirement: Requirement) -> str:
    return str(requirement.pinned or requirement.specifier)


def _diff(change: Change) -> Iterator[str]:
    try:
        for edit in edits(change.moved):
            yield ""
            yield from (f"    {line}" for line in edit.diff)
    except ExplainError as error:
        yield f"  {error}"


def _no_change(explanation: Explanation) -> Iterator[str]:
    if explanation.unknown:
        yield "Correct the name, and ask again."
        return
    if not explanation.all_changes:
        yield "No change was found before the search was stopped. Mend one conflict, and ask again."
        return
    yield "No change to versions nearby resolves this."
    kept = sorted({str(r) for world in explanation.dead_ends for r in world if r.keep})
    if kept:
        yield f"  Kept are {_listed(kept)}; ask again without keeping one of them."
    droppable = [w for w in explanation.removals if not any(r.keep for r in w)]
    for world in droppable[:3]:
        yield f"  It resolves without {_listed(sorted(str(r) for r in world))}."


# ---- JSON -----------------------------------------------------------------------------------


def as_json(explanation: Explanation, target: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in a form for programs."""
    return {
        "schema": SCHEMA,
        "target": dict(target),
        "resolvable": not explanation.conflicts,
        "requirements": [_requirement(r) for r in explanation.requirements],
        "versions": dict(explanation.versions),
        "warnings": list(explanation.warnings),
        "conflicts": [
            {
                "requirements": [_requirement(r) for r in conflict.requirements],
                "kind": conflict.reason.kind,
                "reason": " ".join(_reason(conflict)),
                "demands": [_json_demand(d) for d in conflict.reason.demands],
                "nearby": list(conflict.nearby),
            }
            for conflict in explanation.conflicts
        ],
        "all_conflicts": explanation.all_conflicts,
        "changes": [
            {
                "moves": [
                    {"from": _requirement(old), "to": new.text, "version": _version(change, old)}
                    for old, new in change.moved.items()
                ],
                "diff": list(_diff(change)),
            }
            for change in explanation.changes
        ],
        "all_changes": explanation.all_changes,
    }


def _version(change: Change, old: Requirement) -> str:
    version: Version = change.versions[old]
    return str(version)


def _requirement(requirement: Requirement) -> dict[str, Any]:
    return {
        "text": str(requirement),
        "name": requirement.name,
        "file": requirement.origin.file,
        "line": requirement.origin.line,
        "source": str(requirement.origin),
        "constraint": requirement.constraint,
        "keep": requirement.keep,
    }


def _json_demand(demand: Demand) -> dict[str, Any]:
    return {
        "package": demand.package,
        "specifier": demand.specifier,
        "by": _name(demand.by) if demand.by else None,
        "through": str(demand.root),
        "chain": [_name(release) for release in demand.chain],
    }

"""Where a requirement may move: next to the versions that it allows, and never far back.

A requirement moves to versions just above or just below those it allows. Nobody wants transformers
4.17 in place of 4.46 because it happens to resolve, so the way back ends where the set comes from:
at its oldest pin, or half a year before the version that moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from verify.explain.requirements import Requirement

_WAY_BACK = timedelta(days=183)
_UPPER, _LOWER, _BOTH = ("<", "<="), (">", ">="), ("==", "===", "~=")

Moves = Callable[[Requirement], Sequence[Requirement]]


def way_back(dates: Mapping[str, str], name: str) -> str:
    """The day before which no release of a package is considered; empty if nothing is known.

    Args:
        dates: when the pinned version of each package of the set was published.
        name: the package that moves.
    """
    if not dates:
        return ""
    oldest = min(dates.values())
    own = date.fromisoformat(dates.get(name, oldest))
    return min(oldest, str(own - _WAY_BACK))


def relaxed(requirement: Requirement, oldest: str = "") -> list[Requirement]:
    """The requirement moved to newer and to older versions than it allows.

    Args:
        requirement: what is moved; it must be movable.
        oldest: no version below this one.
    """
    found = []
    kept = [str(c) for c in requirement.specifier if c.operator == "!="]
    ends: Mapping[str, tuple[Callable[[Specifier], str], str]] = {
        "newer": (_above, ""),
        "older": (_below, f">={oldest}" if oldest else ""),
    }
    for direction, (beyond, limit) in ends.items():
        edges = [edge for clause in requirement.specifier if (edge := beyond(clause))]
        if edges:
            # of several bounds on one side the resolver needs only be beyond one of them, and
            # only the tightest bounds anything: the others hold inside it
            edge = edges[0] if len(edges) == 1 else _tightest(edges, direction)
            text = ",".join([edge, *sorted(kept), *([limit] if limit else [])])
            form = replace(requirement.with_specifier(text), moved=direction)
            pin = requirement.pinned
            if direction == "older" and pin:
                form = replace(form, was=f"{requirement.name}=={pin.public}")
            found.append(form)
    return found


def limit(clause: Specifier) -> str:
    """The upper end of the versions of a clause, as a specifier; nothing if it has none."""
    if clause.operator in _UPPER:
        return str(clause)
    if clause.operator not in _BOTH:
        return ""
    if clause.operator == "~=" or clause.version.endswith(".*"):
        return f"<{_next(clause)}"
    return f"<={_public(clause)}"


def _above(clause: Specifier) -> str:
    """The versions above those of a clause; nothing if it has no upper end."""
    if clause.operator in _LOWER or clause.operator == "!=":
        return ""
    if clause.operator == "<":
        return f">={clause.version}"
    if clause.operator == "<=":
        return f">={_public(clause)},!={_public(clause)}"
    if clause.operator == "~=" or clause.version.endswith(".*"):
        return f">={_next(clause)}"
    if "+" in clause.version:  # a build of a release is next to the release itself
        return f">={_public(clause)}"
    # not `>`, which would leave out the release's own post-releases
    return f">={_public(clause)},!={_public(clause)}"


def _below(clause: Specifier) -> str:
    """The versions below those of a clause; nothing if it has no lower end."""
    if clause.operator in _UPPER or clause.operator == "!=":
        return ""
    if clause.operator == ">":
        return f"<={clause.version}"
    version = clause.version[:-2] if clause.version.endswith(".*") else _public(clause)
    return f"<{version}"


def _public(clause: Specifier) -> str:
    """A clause's version without what follows a ``+``, which only ``==`` may name."""
    try:
        return Version(clause.version).public
    except InvalidVersion:  # ``===`` may name anything
        return clause.version


def _next(clause: Specifier) -> str:
    """The first version after those that ``~=`` or ``==….*`` allows."""
    if clause.operator == "~=":
        release = Version(clause.version).release[:-1]
    else:
        release = Version(clause.version[:-2]).release
    return ".".join(map(str, (*release[:-1], release[-1] + 1)))


def _tightest(edges: Sequence[str], direction: str) -> str:
    def bound(edge: str) -> Version:
        return Version(next(iter(SpecifierSet(edge.split(",")[0]))).version)

    return min(edges, key=bound) if direction == "newer" else max(edges, key=bound)


def settled(requirement: Requirement, version: Version, direction: str) -> Requirement:
    """The requirement changed just enough to allow ``version``, written the way it was.

    A pin stays a pin, ``~=`` stays ``~=``, and a range is widened at one end.
    """
    clauses = sorted(requirement.specifier, key=lambda c: requirement.text.find(c.version))
    moving = (*_BOTH, *(_UPPER if direction == "newer" else _LOWER))
    parts: list[str] = []
    for clause in clauses:
        text = str(clause)
        if clause.operator in moving:
            text = _moved(clause, version, direction)
        if text not in parts:
            parts.append(text)
    return requirement.with_specifier(",".join(parts))


def _moved(clause: Specifier, version: Version, direction: str) -> str:
    if clause.operator in ("==", "==="):
        if clause.version.endswith(".*"):
            length = len(Version(clause.version[:-2]).release)
            return f"=={'.'.join(map(str, _padded(version, length)[:length]))}.*"
        return f"=={version}"
    if clause.operator == "~=":
        one = len(version.release) == 1  # ``~=4`` means nothing
        return f"~={version.release[0]}.0" if one else f"~={version}"
    return f"<={version}" if direction == "newer" else f">={version}"


def _padded(version: Version, length: int) -> tuple[int, ...]:
    release = version.release
    return release + (0,) * (length - len(release))


def distance(requirement: Requirement, version: Version) -> tuple[int, ...]:
    """How far ``version`` is from what a requirement allows: by major, minor, further parts."""
    ends = []
    for clause in requirement.specifier:
        try:
            ends.append(Version(clause.version.removesuffix(".*")))
        except InvalidVersion:
            continue
    steps = [
        tuple(abs(a - b) for a, b in zip(_padded(version, 3)[:3], _padded(end, 3)[:3], strict=True))
        for end in ends
    ]
    return min(steps, default=(0, 0, 0))

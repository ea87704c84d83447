"""Which demands meet in a conflict, and who brought them in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from verify.explain.oracle import Answer, Ask, World, stated
from verify.explain.requirements import Origin, Requirement
from verify.explain.runtime import broken
from verify.floors import Floor

_PROBE = Origin(label="probe")  # of what is asked only to learn something


@dataclass(frozen=True)
class Demand:
    """What somebody wants of a package.

    Attributes:
        package: of which.
        specifier: which versions.
        by: the release that demands it, as (package, version); ``None``: the requirement itself.
        root: the requirement through which the demand comes in.
        chain: the releases between the requirement and the demand, the demanding one last.
    """

    package: str
    specifier: str
    by: tuple[str, str] | None
    root: Requirement
    chain: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Reason:
    """Why a minimal conflict is one.

    Attributes:
        kind: ``"meet"`` (two demands), ``"runtime"`` (a floor), ``"unknown-package"``,
            ``"no-version"``, ``"yanked"``, ``"no-wheel"``, ``"source-only"``, ``"python"``, or
            ``"quote"``.
        demands: those that meet.
        package: what a reason with a single requirement is about.
        floor: the floor that is broken.
        detail: the versions of a broken floor's packages, yanked versions, a Python version, or
            uv's words.
    """

    kind: str
    demands: tuple[Demand, ...] = ()
    package: str = ""
    floor: Floor | None = None
    detail: str = ""


def reason(
    conflict: World, order: Sequence[Requirement], floors: Sequence[Floor], ask: Ask
) -> Reason:
    """Find out what meets.

    Args:
        conflict: a minimal conflict.
        order: the requirements in the order in which they were read.
        floors: what metadata does not say.
        ask: an oracle that knows metadata only.
    """
    members = [r for r in order if r in conflict]
    (answer,) = ask([conflict])
    if answer.resolves:
        return _runtime(members, answer, floors)
    if len(members) == 1:
        why = _yanked(members[0], answer.refusal, ask)
        return why or _alone(members[0], answer.refusal)
    for one in members:
        meeting = next(_meetings(one, conflict - {one}, order, ask), None)
        if meeting:
            return Reason("meet", meeting, package=meeting[0].package)
    return Reason("quote", detail=answer.refusal)


def _runtime(members: Sequence[Requirement], answer: Answer, floors: Sequence[Floor]) -> Reason:
    floor = broken(floors, answer.versions)[0]
    demands = []
    for package in (floor.package, floor.needs):
        for root, chain in _bringers(package, members, answer):
            demands.append(Demand(package, answer.versions[package], None, root, chain))
            break
    have = f"{floor.package} {answer.versions[floor.package]}"
    return Reason("runtime", tuple(demands), floor.needs, floor, have)


_RANGE = r"([A-Za-z0-9._-]+?)(?:[<>=!]\S*)?"  # a package, with or without versions
_ALONE = (
    ("unknown-package", r"(\S+) was not found in the (?:package registry|provided)"),
    ("source-only", r"Wheels are required for `([^`]+)`"),
    ("no-version", r"there (?:is|are) no versions? of ([A-Za-z0-9._-]+)"),
    ("no-version", rf"only (?:the following versions of )?{_RANGE} (?:is|are) available"),
    ("no-wheel", rf"{_RANGE} has no wheels with a matching"),
    ("python", rf"{_RANGE} depends on Python(\S+)"),
)


def _alone(requirement: Requirement, refusal: str) -> Reason:
    """What is wrong with a requirement that does not resolve by itself."""
    for kind, pattern in _ALONE:
        found = re.search(pattern, refusal)
        if not found:
            continue
        if kind in ("no-version", "unknown-package") and found[1] != requirement.name:
            continue  # it is about what the requirement needs, which is longer to tell
        if kind == "python":
            return Reason(kind, package=found[1], detail=found[2].rstrip(","))
        return Reason(kind, package=found[1], detail=refusal)
    return Reason("quote", detail=refusal)


def _yanked(requirement: Requirement, refusal: str, ask: Ask) -> Reason | None:
    """The releases with which a requirement resolves, if these are yanked.

    Of a yanked release that has sources too the resolver says that there is no wheel, for it looks
    at none; so each release that it rules out is asked for by a pin.
    """
    said = re.findall(r"([A-Za-z0-9._-]+)==(\S+) (was yanked|has no usable wheels)", refusal)
    pins = [Requirement(f"{name}=={version}", _PROBE) for name, version, _ in said]
    answers = ask([frozenset({requirement, pin}) for pin in pins])
    found: dict[str, set[str]] = {}
    for (name, version, why), answer in zip(said, answers, strict=True):
        if any(f"`{name}=={version}` is yanked" in warning for warning in answer.warnings):
            found.setdefault(name, set()).add(version)
        elif why != "was yanked":
            return None  # this one may be built
    if not found:
        return None
    package, versions = next(iter(found.items()))
    return Reason("yanked", package=package, detail=", ".join(sorted(versions, key=Version)))


def _meetings(
    one: Requirement, rest: World, order: Sequence[Requirement], ask: Ask
) -> Iterator[tuple[Demand, Demand]]:
    """Pairs of demands that exclude each other, one from each side."""
    # a constraint asks for nothing; what it would allow is what it is about
    alone, others = ask([frozenset({replace(one, constraint=False)}), rest])
    shared = [p for p, v in alone.versions.items() if others.versions.get(p, v) != v]
    if one.constraint:
        shared = [one.name] if one.name in others.versions else []
    members = [r for r in order if r in rest]

    def steps(package: str) -> tuple[bool, int]:
        ways = (*_bringers(package, [one], alone), *_bringers(package, members, others))
        return package != one.name, sum(len(chain) for _, chain in ways)

    shared.sort(key=steps)
    for package in shared:
        here = _demands(package, others.versions[package], [one], alone, ask)
        there_version = alone.versions.get(package) or str(one.pinned or "")
        there = _demands(package, there_version, members, others, ask)
        for pair in product(there, here):
            if _exclude(pair[0], others.versions[package], pair[1], there_version):
                yield pair


def _exclude(there: Demand, there_version: str, here: Demand, here_version: str) -> bool:
    """Whether each of two demands rules out the version that the other side chose."""
    return not _allows(here.specifier, there_version) and not _allows(there.specifier, here_version)


def _allows(specifier: str, version: str) -> bool:
    return not version or SpecifierSet(specifier).contains(version, prereleases=True)


def _demands(
    package: str, other_version: str, members: Sequence[Requirement], answer: Answer, ask: Ask
) -> list[Demand]:
    """What is wanted of a package in a solution that ``other_version`` would not satisfy."""
    found = [
        Demand(package, str(r.specifier), None, r)
        for r in members
        if r.name == package and r.specifier
    ]
    for parent in answer.parents.get(package, ()):
        release = (parent, answer.versions.get(parent, ""))
        specifier = _edge(_release(release, members), package, other_version, ask)
        if specifier:
            for root, chain in _bringers(parent, members, answer):
                found.append(Demand(package, specifier, release, root, chain))
                break
    return found


def _release(release: tuple[str, str], members: Sequence[Requirement]) -> Requirement | None:
    """What asks for a release: a pin, or the requirement that says where it comes from."""
    name, version = release
    if version:
        return Requirement(f"{name}=={version}", _PROBE)
    return next((r for r in members if r.name == name and r.parsed and r.parsed.url), None)


def _edge(release: Requirement | None, package: str, unwanted: str, ask: Ask) -> str:
    """What a release wants of a package, if it does not want the version ``unwanted``."""
    if not release or not unwanted:
        return ""
    (answer,) = ask([frozenset({release, Requirement(f"{package}=={unwanted}", _PROBE)})])
    return stated(answer.refusal, release.name, package)


def _bringers(
    package: str, members: Sequence[Requirement], answer: Answer
) -> Iterator[tuple[Requirement, tuple[tuple[str, str], ...]]]:
    """Requirements that bring a package in, each with the shortest way from it to the package."""
    paths: list[tuple[str, ...]] = [(package,)]
    seen = {package}
    while paths:
        path = paths.pop(0)
        for requirement in members:
            if requirement.name == path[0] and not requirement.constraint:
                yield requirement, tuple((name, answer.versions.get(name, "")) for name in path)
        for parent in answer.parents.get(path[0], ()):
            if parent not in seen:
                seen.add(parent)
                paths.append((parent, *path))

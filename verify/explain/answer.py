"""From requirements to the answer: what conflicts, why, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from verify.explain.conflicts import minimal_conflicts
from verify.explain.corrections import Change, Search, applied, changes_by_parts, nearest
from verify.explain.edges import Reason, reason
from verify.explain.names import nearest_names
from verify.explain.neighbourhood import Moves, relaxed, way_back
from verify.explain.oracle import World
from verify.explain.requirements import Requirement
from verify.explain.runtime import heeding, inheriting
from verify.explain.uv import Uv
from verify.floors import FLOORS, Floor

_SHOWN = 6  # changes that are worked out; more are no help to anybody

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Conflict:
    """A minimal conflict and its reason.

    Attributes:
        requirements: its members, in the order in which they were read.
        reason: which demands meet.
        nearby: for an unknown package names that may be meant, for a missing version those next
            to it, for a missing wheel the versions of Python that have one.
    """

    requirements: tuple[Requirement, ...]
    reason: Reason
    nearby: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The answer.

    Attributes:
        requirements: what was asked for.
        versions: a solution, if there is one.
        warnings: what else there is to say about it.
        conflicts: all conflicts, each minimal.
        all_conflicts: whether there are no others.
        changes: what resolves them, best first.
        all_changes: whether the search for changes came to an end.
        removals: smallest sets of requirements to drop instead.
        dead_ends: conflicts among what may not be moved.
    """

    requirements: tuple[Requirement, ...]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    all_conflicts: bool = True
    changes: tuple[Change, ...] = ()
    all_changes: bool = True
    removals: tuple[World, ...] = ()
    dead_ends: tuple[World, ...] = ()

    @property
    def unknown(self) -> list[Conflict]:
        """The conflicts that are a name which no package has."""
        return [c for c in self.conflicts if c.reason.kind == "unknown-package"]


def explain(
    requirements: Sequence[Requirement],
    uv: Uv,
    known_names: Iterable[str] = (),
    floors: Sequence[Floor] = FLOORS,
) -> Explanation:
    """Why requirements do not resolve, and the smallest changes that make them.

    Args:
        requirements: what is asked for.
        uv: the resolver.
        known_names: packages that a misspelt name may mean.
        floors: what metadata does not say.
    """
    ask = inheriting(floors, uv, heeding(floors, uv))
    (answer,) = ask([frozenset(requirements)])
    if answer.resolves:
        return Explanation(tuple(requirements), answer.versions, tuple(answer.warnings))

    found = minimal_conflicts(requirements, ask)
    reasons = _at_once(lambda c: reason(c, requirements, floors, uv), found.found)
    conflicts = [
        Conflict(tuple(r for r in requirements if r in world), why)
        for world, why in zip(found.found, reasons, strict=True)
    ]
    conflicts = [_with_nearby(c, uv, known_names, requirements) for c in conflicts]

    # an unknown name cannot be moved; what else is wrong is told all the same
    lost = {c.requirements[0] for c in conflicts if c.reason.kind == "unknown-package"}
    rest = [r for r in requirements if r not in lost]
    search = Search(({},), True, ())
    if len(conflicts) > len(lost):
        moves = _moves(rest, [c for c in conflicts if c.requirements[0] not in lost], uv)
        told = [world for world in found.found if not world & lost]
        search = changes_by_parts(rest, told, moves, ask)
    options = [moved for moved in search.changes[: 2 * _SHOWN] if moved]
    changes = _at_once(lambda moved: nearest(rest, moved, ask), options)
    checked = ask([applied(rest, change.moved) for change in changes])
    changes = [c for c, a in zip(changes, checked, strict=True) if a.resolves]
    return Explanation(
        tuple(requirements),
        {},
        conflicts=tuple(conflicts),
        all_conflicts=found.complete,
        changes=tuple(sorted(changes, key=lambda change: change.rank)[:_SHOWN]),
        all_changes=search.complete,
        removals=found.removals,
        dead_ends=search.dead_ends,
    )


def _at_once(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(work, items))


def _with_nearby(
    conflict: Conflict, uv: Uv, names: Iterable[str], requirements: Sequence[Requirement]
) -> Conflict:
    why, first = conflict.reason, conflict.requirements[0]
    if why.kind == "unknown-package":
        others = [r.name for r in requirements if r.name != why.package]
        return replace(conflict, nearby=tuple(nearest_names(why.package, [*names, *others])))
    pin = first.pinned
    if pin and why.kind == "no-version":
        (older,) = uv.at_end([f"{first.name}<{pin.public}"], "highest")
        beyond = "" if pin.local else f",!={pin.public}"
        (newer,) = uv.at_end([f"{first.name}>={pin.public}{beyond}"], "lowest-direct")
        return replace(conflict, nearby=tuple(v for v in (older, newer) if v))
    if pin and why.package == first.name and why.kind in ("no-wheel", "source-only", "python"):
        return replace(conflict, nearby=tuple(uv.pythons(f"{first.name}=={pin.public}")))
    return conflict


def _moves(requirements: Sequence[Requirement], conflicts: Sequence[Conflict], uv: Uv) -> Moves:
    """How requirements may move."""
    alone = {c.requirements[0] for c in conflicts if len(c.requirements) == 1}
    pins = {r.name: f"{r.name}=={r.pinned}" for r in requirements if r.pinned and r not in alone}
    dates = uv.published(list(pins.values())) if pins else {}
    oldest: dict[str, str] = {}

    def learn(names: Sequence[str]) -> None:
        ends = {name: way_back(dates, name) for name in names}
        known = uv.newest([(name, day) for name, day in ends.items() if day])
        oldest.update({name: known.get(name, "") for name in names})

    def moves(requirement: Requirement) -> Sequence[Requirement]:
        if requirement.name not in oldest:
            learn([requirement.name])
        return relaxed(requirement, oldest[requirement.name])

    learn(sorted({r.name for c in conflicts for r in c.requirements if r.movable}))
    return moves

"""The smallest changes that make a set resolve.

A change moves some requirements, each to newer or to older versions. The search goes by the number
moved, so what it finds first is smallest (minimal correction sets by size): a change that does not
help leaves a conflict, every larger change that helps must move a requirement of that conflict, and
these are tried next (the tree of Reiter 1987, over resolvers instead of theorem provers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from packaging.version import Version

from verify.explain.conflicts import minimal
from verify.explain.neighbourhood import Moves, distance, settled
from verify.explain.oracle import Answer, Ask, World
from verify.explain.requirements import Requirement

Moved = Mapping[Requirement, Requirement]


@dataclass(frozen=True)
class Search:
    """What a search for changes found.

    Attributes:
        changes: requirements and their relaxed forms; those that move fewest come first.
        complete: whether no change is missing that moves as few as the first.
        dead_ends: conflicts in which nothing more can be moved.
    """

    changes: tuple[Moved, ...]
    complete: bool
    dead_ends: tuple[World, ...]


def applied(requirements: Iterable[Requirement], moved: Moved) -> World:
    """The set after a change."""
    return frozenset(moved.get(r, r) for r in requirements)


def smallest_changes(
    requirements: Sequence[Requirement],
    conflicts: Iterable[World],
    moves: Moves,
    ask: Ask,
    budget: int = 120,
) -> Search:
    """Find the changes that move fewest requirements, and those that move one more.

    Of the latter only those that do without any change found before.

    Args:
        requirements: the set.
        conflicts: conflicts in it that are known.
        moves: the relaxed forms of a requirement.
        ask: the oracle.
        budget: after how many candidates to give up.
    """
    known = list(conflicts)
    helpful: list[Moved] = []
    dead_ends: list[World] = []
    level: list[Moved] = [{}]
    while level:
        level = [moved for moved in level if not any(_includes(moved, h) for h in helpful)]
        open_questions = [m for m in level if _conflict(applied(requirements, m), known) is None]
        if len(open_questions) > budget:
            return Search(tuple(helpful), False, tuple(dead_ends))
        budget -= len(open_questions)
        answers = ask([applied(requirements, moved) for moved in open_questions])
        refused: dict[int, Answer] = {}
        for moved, answer in zip(open_questions, answers, strict=True):
            if answer.resolves:
                helpful.append(moved)
            else:
                refused[id(moved)] = answer
        smallest = len(helpful[0]) if helpful else None
        if smallest is not None and level and len(level[0]) > smallest:
            break
        following: dict[frozenset[tuple[Requirement, Requirement]], Moved] = {}
        for moved in level:
            if any(moved is h for h in helpful):
                continue
            world = applied(requirements, moved)
            conflict = _conflict(world, known)
            if conflict is None:
                conflict = minimal(world, refused[id(moved)], _in_order(requirements, moved), ask)
                known.append(conflict)
            candidates = [r for r in requirements if r in conflict and r.movable]
            if not candidates:
                dead_ends.append(conflict)
            for requirement in candidates:
                for form in moves(requirement):
                    child = {**moved, requirement: form}
                    following[frozenset(child.items())] = child
        level = list(following.values())
    return Search(tuple(helpful), True, tuple(dict.fromkeys(dead_ends)))


def changes_by_parts(
    requirements: Sequence[Requirement],
    conflicts: Sequence[World],
    moves: Moves,
    ask: Ask,
    budget: int = 120,
) -> Search:
    """Find the changes that move fewest requirements, for many conflicts at once.

    Conflicts that share no requirement are corrected apart, and the corrections put together.
    Every change of the whole set contains one of each part, so a combination that resolves moves
    as few as possible. If none does, because parts disturb each other, all is searched at once.
    """
    parts = _parts(conflicts)
    if len(parts) < 2:
        return smallest_changes(requirements, conflicts, moves, ask, budget)
    choices: list[list[tuple[Change, Moved]]] = []
    for part in parts:
        members = [r for r in requirements if any(r in conflict for conflict in part)]
        search = smallest_changes(members, part, moves, ask, budget)
        if not search.changes:
            return Search((), search.complete, search.dead_ends)
        ranked = [(nearest(members, moved, ask), moved) for moved in search.changes]
        choices.append(sorted(ranked, key=lambda choice: choice[0].rank))

    combined = sorted(islice(product(*choices), budget * budget), key=_total)
    least, _ = _total(combined[0])
    helpful: list[Moved] = []
    complete = True
    for size in (least, least + 1):
        merged = [
            {r: form for _, moved in choice for r, form in moved.items()}
            for choice in combined
            if _total(choice)[0] == size
        ]
        fresh = [m for m in merged[:budget] if not any(_includes(m, h) for h in helpful)]
        answers = ask([applied(requirements, moved) for moved in fresh])
        helpful += [m for m, a in zip(fresh, answers, strict=True) if a.resolves]
        complete = complete and (size > least or len(merged) <= budget)
    if helpful and len(helpful[0]) == least:
        return Search(tuple(helpful), complete, ())
    return smallest_changes(requirements, conflicts, moves, ask, budget)


def _total(choice: Sequence[tuple[Change, Moved]]) -> tuple[int, list[int]]:
    """How many requirements a combination moves, and how far."""
    changes = [change for change, _ in choice]
    steps = zip(*(change.distance for change in changes), strict=True)
    return sum(len(change.moved) for change in changes), [sum(step) for step in steps]


def _parts(conflicts: Sequence[World]) -> list[list[World]]:
    """The conflicts, in groups that share no requirement with each other."""
    parts: list[list[World]] = []
    for conflict in conflicts:
        touching = [p for p in parts if any(conflict & other for other in p)]
        rest = [p for p in parts if not any(conflict & other for other in p)]
        parts = [*rest, [c for p in touching for c in p] + [conflict]]
    return parts


def _in_order(requirements: Sequence[Requirement], moved: Moved) -> list[Requirement]:
    return [moved.get(r, r) for r in requirements]


def _includes(moved: Moved, smaller: Moved) -> bool:
    return all(moved.get(r) == form for r, form in smaller.items())


def _conflict(world: World, known: Iterable[World]) -> World | None:
    return next((conflict for conflict in known if conflict <= world), None)


@dataclass(frozen=True)
class Change:
    """A change, with the nearest versions that resolve.

    Attributes:
        moved: each requirement that moves, and what it becomes.
        versions: the version that each of them gets.
        distance: how far they move in all: by major, minor, further parts.
    """

    moved: Moved
    versions: Mapping[Requirement, Version]
    distance: tuple[int, ...]

    @property
    def rank(self) -> tuple[object, ...]:
        """Sorts changes: fewest requirements, then nearest versions."""
        return len(self.moved), self.distance


def nearest(requirements: Sequence[Requirement], moved: Moved, ask: Ask) -> Change:
    """The nearest versions with which a change helps.

    One requirement after the other gets the version nearest to what it was, given those before
    it; so no version could be nearer without another being farther. What becomes older goes first
    (see `oracle`: with these settled, the rest can be asked for from below).
    """
    pending = dict(moved)
    versions: dict[Requirement, Version] = {}
    for original in sorted(moved, key=lambda r: moved[r].moved != "older"):
        form = pending[original]
        while True:
            (answer,) = ask([applied(requirements, {**pending, original: form})])
            if not answer.resolves:
                break
            versions[original] = Version(answer.versions[original.name])
            form = _nearer(pending[original], versions[original])
        exact = pending[original].with_specifier(f"=={versions[original]}")
        pending[original] = replace(exact, moved="")
    versions = {r: versions[r] for r in requirements if r in versions}
    final = {r: settled(r, v, moved[r].moved) for r, v in versions.items()}
    steps = [distance(r, v) for r, v in versions.items()]
    return Change(final, versions, tuple(map(sum, zip(*steps, strict=True))))


def _nearer(form: Requirement, version: Version) -> Requirement:
    bound = f"<{version}" if form.moved == "newer" else f">={version},!={version}"
    return form.with_specifier(f"{form.specifier},{bound}")

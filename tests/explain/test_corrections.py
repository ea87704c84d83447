"""The smallest changes, compared with trying every version of everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from tests.explain.worlds import (
    NAMES,
    VERSIONS,
    Oracle,
    Universe,
    numbered,
    requirement_texts,
    universes,
)
from verify.explain.conflicts import minimal_conflicts
from verify.explain.corrections import (
    applied,
    changes_by_parts,
    nearest,
    smallest_changes,
)
from verify.explain.neighbourhood import relaxed
from verify.explain.oracle import Answer, World
from verify.explain.requirements import Requirement

Pattern = frozenset[tuple[Requirement, str]]


def beyond(requirement: Requirement) -> list[tuple[str, str]]:
    """Versions that a requirement does not allow, with their direction."""
    allowed = [v for v in VERSIONS if v in requirement.specifier]
    edge = allowed or [str(requirement.pinned)] if requirement.pinned else allowed
    if not edge:
        return []
    return [(v, "newer") for v in VERSIONS if v > max(edge)] + [
        (v, "older") for v in VERSIONS if v < min(edge)
    ]


def helpful(
    requirements: list[Requirement], oracle: Oracle, size: int
) -> dict[Pattern, list[dict[Requirement, str]]]:
    """By brute force: which moves of ``size`` requirements help, and with which versions."""
    found: dict[Pattern, list[dict[Requirement, str]]] = {}
    for chosen in combinations([r for r in requirements if r.movable], size):
        for versions in product(*(beyond(r) for r in chosen)):
            picked = dict(zip(chosen, versions, strict=True))
            world = frozenset(
                r.with_specifier(f"=={picked[r][0]}") if r in picked else r for r in requirements
            )
            if oracle.resolves(world):
                pattern = frozenset((r, direction) for r, (_, direction) in picked.items())
                found.setdefault(pattern, []).append({r: v for r, (v, _) in picked.items()})
    return found


@settings(max_examples=80, deadline=None)
@given(
    universes(),
    requirement_texts(),
    st.lists(st.sampled_from([False, False, True]), min_size=5, max_size=5),
    st.lists(st.sampled_from(NAMES), unique=True),
)
def test_changes_resolve_none_smaller_does_and_versions_are_nearest(
    universe: Universe, texts: list[str], keep: list[bool], hint: list[str]
) -> None:
    requirements = numbered(texts, keep[: len(texts)])
    oracle = Oracle(universe, hint)
    conflicts = minimal_conflicts(requirements, oracle)
    search = smallest_changes(requirements, conflicts.found, relaxed, oracle, budget=10_000)
    assert search.complete
    patterns = {
        frozenset((r, form.moved) for r, form in moved.items()): moved for moved in search.changes
    }
    sizes = [len(p) for p in patterns]
    best = next((n for n in range(len(texts) + 1) if helpful(requirements, oracle, n)), None)
    assert min(sizes, default=None) == best
    if best is None:
        return
    for size in (best, best + 1):
        expected = helpful(requirements, oracle, size)
        expected = {p: v for p, v in expected.items() if not any(q < p for q in patterns)}
        assert {p for p in patterns if len(p) == size} == set(expected)
        for pattern, versions in expected.items():
            if pattern:
                check_nearest(requirements, patterns[pattern], versions, oracle)


@settings(max_examples=30, deadline=None)
@given(universes(), requirement_texts())
def test_conflicts_apart_are_corrected_apart(universe: Universe, texts: list[str]) -> None:
    requirements = numbered(texts)
    oracle = Oracle(universe)
    conflicts = minimal_conflicts(requirements, oracle).found
    assume(conflicts)
    search = changes_by_parts(requirements, conflicts, relaxed, oracle, budget=10_000)
    sizes = [len(moved) for moved in search.changes]
    best = next((n for n in range(len(texts) + 1) if helpful(requirements, oracle, n)), None)
    assert min(sizes, default=None) == best
    patterns = {frozenset((r, f.moved) for r, f in moved.items()) for moved in search.changes}
    if best is not None:
        assert {p for p in patterns if len(p) == best} == set(helpful(requirements, oracle, best))


def test_parts_that_disturb_each_other_are_searched_together() -> None:
    """Two conflicts apart, and a fifth package that must follow whatever moves."""
    requirements = numbered([f"{name}==1" for name in "abcde"])

    def ask(worlds: Sequence[World]) -> list[Answer]:
        return [_first_fitting(world) for world in worlds]

    def _first_fitting(world: World) -> Answer:
        for picked in product("12", repeat=5):
            versions = dict(zip("abcde", picked, strict=True))
            clash = versions["a"] == versions["b"] == "1" or versions["c"] == versions["d"] == "1"
            behind = versions["e"] == "1" and "2" in picked
            if not clash and not behind and all(versions[r.name] in r.specifier for r in world):
                return Answer(versions)
        return Answer(refusal="no")

    conflicts = [frozenset(requirements[:2]), frozenset(requirements[2:4])]
    search = changes_by_parts(requirements, conflicts, relaxed, ask)
    moved = {"".join(sorted(r.name for r in change)) for change in search.changes}
    assert moved == {"ace", "ade", "bce", "bde"}


def test_ten_conflicts_apart_take_few_questions() -> None:
    """Searched together, they would take a thousand."""
    names = [f"p{n}" for n in range(10)]
    requirements = numbered([f"{name}=={v}" for name in names for v in (1, 2)])
    asked: list[World] = []

    def ask(worlds: Sequence[World]) -> list[Answer]:
        """Each package has the versions 1 and 2."""
        asked.extend(worlds)
        return [_any_of(world) for world in worlds]

    conflicts = [frozenset(requirements[n : n + 2]) for n in range(0, 20, 2)]
    search = changes_by_parts(requirements, conflicts, relaxed, ask)
    assert {len(moved) for moved in search.changes} == {10}
    assert not search.complete, "there are 1024 such changes, and this is told"
    assert len(asked) < 250


def _any_of(world: World) -> Answer:
    versions = {}
    for name in {r.name for r in world}:
        fitting = [v for v in "12" if all(v in r.specifier for r in world if r.name == name)]
        if not fitting:
            return Answer(refusal=name)
        versions[name] = fitting[0]
    return Answer(versions)


def check_nearest(requirements, moved, versions, oracle):  # type: ignore[no-untyped-def]
    change = nearest(requirements, moved, oracle)
    assert set(change.moved) == set(moved)
    assert oracle.resolves(applied(requirements, change.moved))
    chosen = {r: str(v) for r, v in change.versions.items()}
    assert chosen in versions
    for other in versions:
        closer = [_not_farther(moved[r].moved, other[r], chosen[r]) for r in moved]
        assert other == chosen or not all(closer), "another choice is nearer in every respect"


def _not_farther(direction: str, one: str, other: str) -> bool:
    return one <= other if direction == "newer" else one >= other


def test_what_is_kept_is_not_moved() -> None:
    universe = Universe(
        {("a", "2"): {"b": ">=2"}, ("a", "1"): {"b": ""}, ("b", "1"): {}, ("b", "2"): {}}
    )
    oracle = Oracle(universe)
    free = numbered(["a==2", "b==1"])
    changes = smallest_changes(free, [], relaxed, oracle).changes
    assert {next(iter(c)).name for c in changes} == {"a", "b"}
    kept = numbered(["a==2", "b==1"], [True, False])
    (change,) = smallest_changes(kept, [], relaxed, oracle).changes
    assert [(old.text, nearest(kept, change, oracle).moved[old].text) for old in change] == [
        ("b==1", "b==2")
    ]
    both = numbered(["a==2", "b==1"], [True, True])
    search = smallest_changes(both, [], relaxed, oracle)
    assert not search.changes
    assert search.dead_ends == (frozenset(both),)


def test_fewer_moves_come_before_nearer_versions() -> None:
    """Two packages near by, or one far away: one is fewer."""
    universe = Universe(
        {
            ("a", "1"): {"b": "==2", "c": "==2"},
            ("a", "4"): {"b": "==1", "c": "==1"},
            **{(n, v): {} for n in "bc" for v in "12"},
        }
    )
    requirements = numbered(["a==1", "b==1", "c==1"])
    oracle = Oracle(universe)
    search = smallest_changes(requirements, [], relaxed, oracle)
    changes = sorted(
        (nearest(requirements, moved, oracle) for moved in search.changes), key=lambda c: c.rank
    )
    assert [[m.text for m in c.moved.values()] for c in changes] == [["a==4"], ["b==2", "c==2"]]
    assert changes[0].versions[requirements[0]] == Version("4")

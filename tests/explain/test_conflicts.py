"""All minimal conflicts, compared with trying every subset."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.explain.worlds import (
    NAMES,
    Oracle,
    Universe,
    numbered,
    requirement_texts,
    universes,
)
from verify.explain.conflicts import hitting_sets, minimal_conflicts
from verify.explain.oracle import World
from verify.explain.requirements import Requirement

hints = st.lists(st.sampled_from(NAMES), unique=True)


def subsets(items: list[Requirement]) -> list[World]:
    sizes = range(len(items) + 1)
    return [frozenset(s) for s in chain.from_iterable(combinations(items, n) for n in sizes)]


def smallest(sets: list[World]) -> set[World]:
    """Those that contain no other."""
    return {s for s in sets if not any(other < s for other in sets)}


@settings(max_examples=120, deadline=None)
@given(universes(), requirement_texts(), hints)
def test_every_minimal_conflict_is_found_and_no_other(
    universe: Universe, texts: list[str], hint: list[str]
) -> None:
    """Hints of the resolver may be wrong, which must not matter."""
    requirements = numbered(texts)
    oracle = Oracle(universe, hint)
    found = minimal_conflicts(requirements, oracle)
    everything = subsets(requirements)
    conflicting = [s for s in everything if not oracle.resolves(s)]
    assert set(found.found) == smallest(conflicting)
    assert len(found.found) == len(set(found.found))
    assert found.complete
    enough = [s for s in everything if oracle.resolves(frozenset(requirements) - s)]
    assert set(found.removals) == smallest(enough)


def test_a_limit_on_the_search_is_told() -> None:
    """Six pairs that clash: 64 ways out, more than may be asked about."""
    requirements = numbered([f"p{n}=={v}" for n in range(6) for v in (1, 2)])

    def ask(worlds):  # type: ignore[no-untyped-def]
        from verify.explain.oracle import Answer

        names = [[r.name for r in world] for world in worlds]
        return [Answer(refusal="no" if len(set(n)) < len(n) else "") for n in names]

    assert len(minimal_conflicts(requirements, ask, budget=70).found) == 6
    assert minimal_conflicts(requirements, ask, budget=70).complete
    stopped = minimal_conflicts(requirements, ask, budget=4)
    assert not stopped.complete
    assert stopped.found


@given(st.lists(st.frozensets(st.integers(0, 5), min_size=1, max_size=3), max_size=5))
def test_hitting_sets_are_all_the_minimal_ones(sets: list[frozenset[int]]) -> None:
    items = numbered([f"p{n}" for n in range(6)])
    worlds = [frozenset(items[n] for n in s) for s in sets]
    found = list(hitting_sets(worlds, items))
    hitting = [s for s in subsets(items) if all(s & w for w in worlds)]
    assert sorted(map(sorted_texts, found)) == sorted(map(sorted_texts, smallest(hitting)))


def sorted_texts(world: World) -> list[str]:
    return sorted(r.text for r in world)


def test_a_resolver_that_names_the_culprits_is_asked_little() -> None:
    """Two of thirty pins clash; trying one after the other would take thirty questions."""
    universe = Universe({("a", "1"): {"b": ">=2"}, ("b", "1"): {}, ("b", "2"): {}})
    texts = ["a==1", "b==1"]
    others = [f"c{n}" for n in range(28)]

    class Large(Oracle):
        def _one(self, world: World):  # type: ignore[no-untyped-def]
            return super()._one(frozenset(r for r in world if r.name in NAMES))

    oracle = Large(universe, ["a", "b"])
    asked: list[World] = []

    def ask(worlds):  # type: ignore[no-untyped-def]
        asked.extend(worlds)
        return oracle(worlds)

    found = minimal_conflicts(numbered(others + texts), ask)
    assert [sorted_texts(w) for w in found.found] == [texts]
    assert len(asked) <= 8

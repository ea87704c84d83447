"""What metadata does not say: floors, and limits that later releases state."""

from __future__ import annotations

from hypothesis import given, settings
from packaging.specifiers import SpecifierSet

from tests.explain.worlds import (
    Oracle,
    Universe,
    breaks,
    floors,
    numbered,
    requirement_texts,
    universes,
)
from verify import floors as table
from verify.explain.neighbourhood import relaxed
from verify.explain.oracle import Answer, World
from verify.explain.requirements import Requirement
from verify.explain.runtime import broken, heeding, inheriting, ways_out
from verify.floors import FLOORS, Floor


@settings(max_examples=150, deadline=None)
@given(universes(), requirement_texts(), floors())
def test_a_set_resolves_if_some_solution_heeds_all_floors(
    universe: Universe, texts: list[str], demands: list[Floor]
) -> None:
    world = frozenset(numbered(texts))
    (answer,) = heeding(demands, Oracle(universe))([world])
    runs = [s for s in universe.solutions(world) if not any(breaks(f, s) for f in demands)]
    assert answer.resolves == bool(runs)
    if answer.resolves:
        assert answer.versions in runs


@given(floors())
def test_ways_out_of_a_floor_are_all_of_them(demands: list[Floor]) -> None:
    for floor in demands:
        for one in "1234":
            for other in "1234":
                versions = {floor.package: one, floor.needs: other}
                met = [Requirement(w) for w in ways_out(floor)]
                heeded = any(versions[r.name] in r.specifier for r in met)
                assert heeded != breaks(floor, versions)


def test_the_floors_of_transformers() -> None:
    def lowest(transformers: str) -> str:
        versions = {"transformers": transformers, "torch": "1.0"}
        demands = [f.specifier for f in broken(FLOORS, versions)]
        return max(demands, default="")

    known = {"4.51.3": "", "4.52.1": ">=2.1", "4.57.6": ">=2.1", "5.0.0": ">=2.2"}
    known |= {"5.1.0": ">=2.4", "5.14.1": ">=2.4", "5.15.0": ">=2.5", "5.19.0": ">=2.5"}
    known |= {"5.20.0": ">=2.6", "5.23.0": ">=2.6"}
    assert {v: lowest(v) for v in known} == known
    assert broken(FLOORS, {"transformers": "5.23.0"}) == [], "torch need not be there"


def test_every_floor_is_made_of_bounds_and_says_how_it_is_known() -> None:
    for floor in table.FLOORS:
        operators = {
            clause.operator for clause in SpecifierSet(floor.versions + "," + floor.specifier)
        }
        assert operators <= {">=", ">", "<=", "<"}
        assert floor.why
        assert any(character.isdigit() for character in floor.established)


class Spoken(Oracle):
    """An oracle whose refusals name the edges of pinned releases, in the words of uv."""

    def _one(self, world: World) -> Answer:
        answer = super()._one(world)
        edges = [
            f"{r.name}=={r.pinned} depends on {name}{specifier}, and"
            for r in world
            if r.pinned
            for name, specifier in self.universe.releases.get((r.name, str(r.pinned)), {}).items()
        ]
        return answer if answer.resolves else Answer(refusal=" ".join(edges) or "no")


def test_an_older_release_inherits_the_limits_of_a_later_one() -> None:
    """Release 2 of a says b<3; release 1 says nothing, because b 3 was not there yet."""
    universe = Universe(
        {("a", "1"): {"b": ""}, ("a", "2"): {"b": "<3"}, **{("b", v): {} for v in "1234"}}
    )
    metadata = Spoken(universe)
    ask = inheriting([], metadata, metadata)
    older = relaxed(Requirement("a==2"))[1]
    assert metadata.resolves(frozenset({older, Requirement("b==3")}))
    assert not ask([frozenset({older, Requirement("b==3")})])[0].resolves
    assert ask([frozenset({older, Requirement("b==2")})])[0].resolves
    (answer,) = ask([frozenset({older, Requirement("b>=2")})])
    assert answer.versions == {"a": "1", "b": "2"}, "another version of b is found"
    pinned_by_hand = frozenset({Requirement("a==1"), Requirement("b==3")})
    assert ask([pinned_by_hand])[0].resolves, "what the user pins is the user's matter"


def test_lower_bounds_are_not_inherited() -> None:
    universe = Universe(
        {("a", "1"): {"b": ""}, ("a", "2"): {"b": ">=3"}, **{("b", v): {} for v in "123"}}
    )
    metadata = Spoken(universe)
    older = relaxed(Requirement("a==2"))[1]
    ask = inheriting([], metadata, metadata)
    assert ask([frozenset({older, Requirement("b==1")})])[0].resolves


def test_a_limit_is_found_behind_a_lower_bound() -> None:
    universe = Universe(
        {
            ("a", "1"): {"b": "", "c": ""},
            ("a", "2"): {"b": ">=3", "c": "<3"},
            **{(name, v): {} for name in "bc" for v in "123"},
        }
    )
    metadata = Spoken(universe)
    ask = inheriting([], metadata, metadata)
    older = relaxed(Requirement("a==2"))[1]
    others = {Requirement("b==1"), Requirement("c==3")}
    assert metadata.resolves(frozenset({older, *others}))
    assert not ask([frozenset({older, *others})])[0].resolves


def test_limits_at_run_time_are_inherited_too() -> None:
    universe = Universe(
        {("a", "1"): {"b": ""}, ("a", "2"): {"b": ""}, **{("b", v): {} for v in "123"}}
    )
    floor = Floor("a", ">=2,<3", "b", "<3", "it breaks", "made up")
    metadata = Spoken(universe)
    ask = inheriting([floor], metadata, heeding([floor], metadata))
    older = relaxed(Requirement("a==2"))[1]
    assert not ask([frozenset({older, Requirement("b==3")})])[0].resolves

"""Small worlds of packages with a resolver by exhaustion: the oracle that tests compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from verify.explain.oracle import Answer, World
from verify.explain.requirements import Origin, Requirement
from verify.floors import Floor

NAMES = ("a", "b", "c", "d")
VERSIONS = ("1", "2", "3", "4")
SPECIFIERS = ("", "<2", ">=2", "<3", ">=3", "==1", "==2", "==3", "!=2")
Needs = Mapping[str, str]  # package -> specifier


@dataclass(frozen=True)
class Universe:
    """What each release needs; a release that is not listed does not exist."""

    releases: Mapping[tuple[str, str], Needs]

    def solutions(self, world: World) -> Iterator[dict[str, str]]:
        """All solutions of a world, in an order that means nothing."""
        choices = [[None, *(v for v in VERSIONS if (name, v) in self.releases)] for name in NAMES]
        for picked in product(*choices):
            versions = {n: v for n, v in zip(NAMES, picked, strict=True) if v is not None}
            if self._holds(versions, world):
                yield versions

    def _holds(self, versions: dict[str, str], world: World) -> bool:
        for requirement in world:
            version = versions.get(requirement.name)
            if version is None and not requirement.constraint:
                return False
            if version is not None and version not in requirement.specifier:
                return False
        for release in versions.items():
            for name, specifier in self.releases[release].items():
                if versions.get(name) is None or versions[name] not in SpecifierSet(specifier):
                    return False
        return True


class Oracle:
    """A universe that answers as uv does, counts, and may hint at the wrong packages."""

    def __init__(self, universe: Universe, hint: Sequence[str] = ()) -> None:
        self.universe, self.hint, self.asked = universe, hint, 0
        self._known: dict[World, Answer] = {}

    def __call__(self, worlds: Sequence[World]) -> Sequence[Answer]:
        return [self._one(world) for world in worlds]

    def _one(self, world: World) -> Answer:
        if world not in self._known:
            self.asked += 1
            found = next(self.universe.solutions(world), None)
            words = " ".join(self.hint) or "no"
            self._known[world] = Answer(refusal=words) if found is None else Answer(found)
        return self._known[world]

    def resolves(self, world: World) -> bool:
        return self._one(world).resolves


def numbered(texts: Sequence[str], keep: Sequence[bool] = ()) -> list[Requirement]:
    """Requirements on lines of their own."""
    kept = keep or [False] * len(texts)
    return [
        Requirement(text, Origin("r.txt", n), keep=k)
        for n, (text, k) in enumerate(zip(texts, kept, strict=True), 1)
    ]


@st.composite
def universes(draw: st.DrawFn) -> Universe:
    """Up to four packages with up to four releases, which need each other."""
    releases = {}
    for place, name in enumerate(NAMES):
        for version in VERSIONS:
            if draw(st.integers(0, 9)) == 0:
                continue
            # packages need later ones, and now and then an earlier one
            others = NAMES[place + 1 :] if draw(st.integers(0, 4)) else NAMES[:place]
            needs = {o: draw(st.sampled_from(SPECIFIERS)) for o in others if draw(st.booleans())}
            releases[name, version] = needs
    return Universe(releases)


def requirement_texts() -> st.SearchStrategy[list[str]]:
    """Mostly pins, each package once or twice."""
    pin = st.builds("{}=={}".format, st.sampled_from(NAMES), st.sampled_from(VERSIONS))
    ranged = st.builds(
        "{}{}".format, st.sampled_from(NAMES), st.sampled_from(["", ">=3", "<2", ">=2,<3", "~=2.0"])
    )
    return st.lists(st.one_of(pin, pin, pin, ranged), min_size=1, max_size=5)


def floors() -> st.SearchStrategy[list[Floor]]:
    """Demands that metadata does not state."""
    bounds = st.sampled_from([">=2", ">=3", "<2", "<3", ">=2,<3"])
    name = st.sampled_from(NAMES)
    made = st.builds(Floor, name, bounds, name, bounds, st.just("it breaks"), st.just("made up"))
    return st.lists(made.filter(lambda f: f.package != f.needs), max_size=3)


def breaks(floor: Floor, versions: Mapping[str, str]) -> bool:
    """Whether a solution breaks a floor; written apart from the code under test."""
    if floor.package not in versions or floor.needs not in versions:
        return False
    demands = Version(versions[floor.package]) in SpecifierSet(floor.versions)
    return demands and Version(versions[floor.needs]) not in SpecifierSet(floor.specifier)

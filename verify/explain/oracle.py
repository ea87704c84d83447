"""The one question, "does this set resolve?", and the form of its answer.

An oracle is any function from worlds (sets of requirements) to answers, one for each, in order.
It takes several at once because independent questions are asked at once. `uv` is the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from verify.explain.requirements import Requirement

World = frozenset[Requirement]


@dataclass(frozen=True)
class Answer:
    """What the resolver says of a set.

    Attributes:
        versions: the versions it chose, by package; empty if the set does not resolve.
        parents: who asked for each package.
        refusal: its words, if the set does not resolve.
        warnings: what else it says, one sentence each.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, Sequence[str]] = field(default_factory=dict)
    refusal: str = ""
    warnings: Sequence[str] = ()

    @property
    def resolves(self) -> bool:
        """Whether there is a solution."""
        return not self.refusal


Ask = Callable[[Sequence[World]], Sequence[Answer]]


def suspects(refusal: str, world: World) -> World:
    """The requirements whose packages a refusal names: a guess, to be confirmed by asking."""
    named = {canonicalize_name(n) for n in re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", refusal)}
    return frozenset(r for r in world if r.name in named)


def stated(refusal: str, name: str, package: str) -> str:
    """What a refusal says that the pinned release of ``name`` needs of a package, or nothing."""
    who = rf"(?:\b{re.escape(name)}==\S+ depends|all versions of {re.escape(name)} depend) on "
    what = rf"{re.escape(package)}(?:\[[^\]]*\])?(?:\{{[^}}]*\}})?([<>=!~]\S*)"
    several = re.search(rf"{who}one of:\n((?:\s*{what}\n)+)", refusal)
    single = re.search(who + what, refusal)
    ranges = re.findall(what, several[1]) if several else [single[1]] if single else [""]
    specifier = _together([text.rstrip(",.") for text in ranges])
    try:
        SpecifierSet(specifier)
    except InvalidSpecifier:
        return ""
    return specifier


def _together(ranges: Sequence[str]) -> str:
    """One specifier for ranges between which single versions are left out, or nothing."""
    parts = [text.split(",") for text in ranges]
    holes = []
    for (*_, end), (begin, *_) in pairwise(parts):
        if (end[:1], begin[:1]) != ("<", ">") or end[1:] != begin[1:]:
            return ""
        holes.append(f"!={end[1:]}")
    return ",".join([*parts[0][:-1], *holes, *parts[-1][1:]]) if holes else ranges[0]

"""The one question, "does this set resolve?", and the form of its answer.

An oracle is any function from worlds (sets of requirements) to answers, one for each, in order.
It takes several at once because independent questions are asked at once. `uv` is the real one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
    found = re.search(
        rf"(?:\b{re.escape(name)}==\S+ depends|all versions of {re.escape(name)} depend) on "
        rf"{re.escape(package)}(?:\[[^\]]*\])?(?:\{{[^}}]*\}})?([<>=!~]\S*)",
        refusal,
    )
    specifier = found[1].rstrip(",.") if found else ""
    try:
        SpecifierSet(specifier)
    except InvalidSpecifier:
        return ""
    return specifier

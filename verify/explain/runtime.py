"""Oracles for which a solution that installs but cannot run is none.

`heeding` adds what packages demand only when they run. `inheriting` adds what can be known of a
release from later ones: where trl 0.12.2 says that it needs transformers<4.47, and 0.12.1 says
nothing, then 0.12.1 was published before anybody knew. Resolvers like to flee to such releases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from packaging.specifiers import Specifier, SpecifierSet

from verify.explain.neighbourhood import limit
from verify.explain.oracle import Answer, Ask, World, stated
from verify.explain.requirements import Origin, Requirement
from verify.floors import Floor

_OPPOSITE = {">=": "<", "<": ">=", ">": "<=", "<=": ">"}


def broken(floors: Sequence[Floor], versions: Mapping[str, str]) -> list[Floor]:
    """The floors which a set of versions breaks."""
    return [
        floor
        for floor in floors
        if _within(floor.versions, versions.get(floor.package))
        and floor.needs in versions
        and not _within(floor.specifier, versions[floor.needs])
    ]


def _within(specifier: str, version: str | None) -> bool:
    return bool(version) and SpecifierSet(specifier).contains(version or "", prereleases=True)


def heeding(floors: Sequence[Floor], ask: Ask) -> Ask:
    """``ask``, except that a solution which cannot run is none.

    Where a solution breaks a floor, every solution that does not break it has either the demanded
    version or a version of the other package that does not demand it: so these are asked for.
    """

    def heed(world: World) -> Answer:
        (answer,) = ask([world])
        return decide(world, answer)

    def decide(world: World, answer: Answer) -> Answer:
        found = broken(floors, answer.versions) if answer.resolves else []
        if not found:
            return answer
        refusals = []
        for way_out in ways_out(found[0]):
            other = heed(world | {_limit(way_out)})
            if other.resolves:
                return other
            refusals.append(other.refusal)
        return Answer(refusal=f"{found[0].why}. " + " ".join(refusals))

    def ask_all(worlds: Sequence[World]) -> Sequence[Answer]:
        return [decide(w, a) for w, a in zip(worlds, ask(worlds), strict=True)]

    return ask_all


def ways_out(floor: Floor) -> list[str]:
    """Limits of which every set of versions that heeds a floor meets one."""
    outside = [f"{floor.package}{_negated(clause)}" for clause in SpecifierSet(floor.versions)]
    return [floor.requirement, *sorted(outside)]


def _negated(clause: Specifier) -> str:
    return _OPPOSITE[clause.operator] + clause.version


def _limit(text: str) -> Requirement:
    return Requirement(text, Origin(label="limit"), constraint=True, keep=True)


# ---- limits that older releases inherit -----------------------------------------------------


def inheriting(floors: Sequence[Floor], metadata: Ask, ask: Ask) -> Ask:
    """``ask``, except that an older form of a pin is held to the upper limits of that pin.

    Args:
        floors: what metadata does not say.
        metadata: an oracle that knows metadata only.
        ask: the oracle whose solutions are checked.
    """

    def decide(world: World, answer: Answer) -> Answer:
        for requirement in sorted((r for r in world if r.was), key=str):
            if not answer.resolves:
                break
            # what nobody asks for comes and goes with the release that needs it
            named = {r.name for r in world} & answer.versions.keys() - {requirement.name}
            others = {n: answer.versions[n] for n in sorted(named) if answer.versions[n]}
            missed = _missed(requirement, others, floors, metadata)
            if missed:
                (narrower,) = ask([world | {_limit(missed)}])
                again = decide(world | {_limit(missed)}, narrower)
                hint = f"{requirement.was} says {missed}. " if not again.resolves else ""
                return replace(again, refusal=hint + again.refusal)
        return answer

    def ask_all(worlds: Sequence[World]) -> Sequence[Answer]:
        return [decide(w, a) for w, a in zip(worlds, ask(worlds), strict=True)]

    return ask_all


def _missed(
    requirement: Requirement, others: dict[str, str], floors: Sequence[Floor], metadata: Ask
) -> str:
    """A limit of the former pin which other packages' versions exceed, or nothing."""
    former = {requirement.name: requirement.was.partition("==")[2]}
    for floor in broken(floors, {**others, **former}):
        if floor.package == requirement.name:
            exceeded = _exceeded(floor.specifier, others[floor.needs])
            if exceeded:
                return floor.needs + exceeded
    while others:
        limits = {_limit(f"{name}=={version}") for name, version in others.items()}
        (probe,) = metadata([frozenset({Requirement(requirement.was), *limits})])
        if probe.resolves:
            return ""
        edge = next(
            ((n, e) for n in others if (e := stated(probe.refusal, requirement.name, n))), None
        )
        if edge is None:
            return ""
        name, specifier = edge
        exceeded = _exceeded(specifier, others[name])
        if exceeded:
            return name + exceeded
        del others[name]  # it is too old for the former pin, which is no news
    return ""


def _exceeded(specifier: str, version: str) -> str:
    """The upper limit in a specifier that a version exceeds, or nothing."""
    limits = [upper for clause in SpecifierSet(specifier) if (upper := limit(clause))]
    return next((upper for upper in limits if not _within(upper, version)), "")

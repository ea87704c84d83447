"""All minimal conflicts of a set.

A conflict is a set of requirements that does not resolve; it is minimal if it does without any one
of them (a minimal unsatisfiable subset). One is found by QuickXplain (Junker 2004), all by the
duality that MARCO (Liffiton et al. 2016) rests on: what is left after taking away one requirement
of each known conflict either resolves or contains a conflict not known yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from verify.explain.oracle import Answer, Ask, World, suspects
from verify.explain.requirements import Requirement

_AT_ONCE = 8


@dataclass(frozen=True)
class Conflicts:
    """The minimal conflicts of a set.

    Attributes:
        found: the conflicts.
        complete: whether there are no others.
        removals: minimal sets of requirements without which the rest resolves, smallest first.
    """

    found: tuple[World, ...]
    complete: bool
    removals: tuple[World, ...]


def minimal_conflicts(requirements: Sequence[Requirement], ask: Ask, budget: int = 64) -> Conflicts:
    """Find the minimal conflicts.

    Args:
        requirements: the set, in order: where there is a choice, later ones are blamed.
        ask: the oracle.
        budget: after how many candidates of "this part resolves" to stop looking for more.
    """
    everything = frozenset(requirements)
    found: list[World] = []
    removals: dict[World, None] = {}
    while len(removals) < budget:
        unknown = (h for h in hitting_sets(found, requirements) if h not in removals)
        candidates = list(islice(unknown, _AT_ONCE))
        if not candidates:
            return _sorted(found, True, removals, requirements)
        for hit, answer in zip(candidates, ask([everything - h for h in candidates]), strict=True):
            rest = everything - hit
            if answer.resolves:
                removals[hit] = None
            elif not any(conflict <= rest for conflict in found):
                found.append(minimal(rest, answer, requirements, ask))
    return _sorted(found, False, removals, requirements)


def minimal(world: World, answer: Answer, order: Sequence[Requirement], ask: Ask) -> World:
    """A minimal conflict within a world of which ``answer`` says that it does not resolve.

    The resolver's words are a hint at where to look, and nothing more: they are checked first.
    """
    core = [r for r in order if r in world]
    hint = suspects(answer.refusal, world)
    if 0 < len(hint) < len(core) and not ask([hint])[0].resolves:
        core = [r for r in core if r in hint]
    return frozenset(_quickxplain(frozenset(), frozenset(), core, ask))


def _quickxplain(
    background: World, added: World, rest: Sequence[Requirement], ask: Ask
) -> set[Requirement]:
    """The part of ``rest`` in a minimal conflict of ``background`` and ``rest`` together."""
    if added and not ask([background])[0].resolves:
        return set()
    if len(rest) == 1:
        return set(rest)
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    later = _quickxplain(background | set(first), frozenset(first), second, ask)
    sooner = _quickxplain(background | later, frozenset(later), first, ask)
    return sooner | later


def hitting_sets(sets: Sequence[World], order: Sequence[Requirement]) -> Iterator[World]:
    """The minimal sets that share something with each of ``sets``, each once."""
    place = {requirement: n for n, requirement in enumerate(order)}

    def extend(chosen: World, barred: World) -> Iterator[World]:
        missed = next((s for s in sets if not s & chosen), None)
        if missed is None:
            if all(any(s & chosen == {c} for s in sets) for c in chosen):
                yield chosen
            return
        for choice in sorted(missed - barred, key=lambda r: place[r]):
            yield from extend(chosen | {choice}, barred)
            barred |= {choice}

    return extend(frozenset(), frozenset())


def _sorted(
    found: Sequence[World],
    complete: bool,
    removals: dict[World, None],
    order: Sequence[Requirement],
) -> Conflicts:
    place = {requirement: n for n, requirement in enumerate(order)}

    def key(world: World) -> tuple[int, list[int]]:
        return len(world), sorted(place[r] for r in world)

    return Conflicts(tuple(sorted(found, key=key)), complete, tuple(sorted(removals, key=key)))

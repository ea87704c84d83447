"""Every check and every problem, once; the page on troubleshooting is written from here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from verify.checks import (
    features,
    gpu,
    host,
    hub,
    imports,
    multigpu,
    offload,
    packages,
    parity,
    training,
)
from verify.pip import anew, distribution_of
from verify.process import Outcome
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Result,
    Status,
    Tier,
    Verdict,
    failed,
    recognise_text,
)
from verify.versions import InvalidError, canonical

_SHOWN = 300  # characters of what a check said as it broke

GROUPS: tuple[Group, ...] = (
    packages.GROUP,
    gpu.GROUP,
    imports.GROUP,
    offload.GROUP,
    training.GROUP,
    parity.GROUP,
    multigpu.GROUP,
    host.GROUP,
    hub.GROUP,
    features.GROUP,
)
CHECKS: Mapping[str, Check] = {c.identifier: c for group in GROUPS for c in group.checks}
PROBLEMS: Mapping[str, Problem] = {p.identifier: p for group in GROUPS for p in group.problems}
GROUP_OF: Mapping[str, str] = {c.identifier: g.name for g in GROUPS for c in g.checks}


def judge(check: Check, outcome: Outcome, context: Context) -> Result:
    """The result of a check whose probe was run: the one place where facts become a verdict."""
    if outcome.facts is not None:
        try:
            verdict = check.decide(outcome.facts, context)
        except InvalidError as error:  # what is installed has a version that is none
            verdict = failed("packages.unreadable", str(error))
    else:
        problem, values = recognise(outcome.text) or (PROBLEMS[check.problem], {})
        verdict = failed(problem.identifier, f"the check {_how_it_ended(outcome)}", "", **values)
    return _result(check, verdict, outcome, context)


def skip(check: Check, reason: str) -> Result:
    """The result of a check that was not run, and why."""
    return Result(check.identifier, GROUP_OF[check.identifier], Status.SKIP, reason)


def recognise(output: str) -> tuple[Problem, dict[str, str]] | None:
    """The problem whose text is in ``output``, and its words.

    If there are several, the one whose text says most besides its names.
    """
    found = [
        (len(re.sub(r"\{\w+\}", "", text)), problem, values)
        for problem in PROBLEMS.values()
        for text in problem.texts
        if (values := recognise_text(text, output)) is not None
    ]
    if not found:
        return None
    _, problem, values = max(found, key=lambda one: one[0])
    return problem, values


def _result(check: Check, verdict: Verdict, outcome: Outcome, context: Context) -> Result:
    wrong = verdict.status in (Status.WARN, Status.FAIL)
    problem = PROBLEMS[verdict.problem] if wrong else None
    values = _values(verdict, context) if wrong else {}
    return Result(
        identifier=check.identifier,
        group=GROUP_OF[check.identifier],
        status=verdict.status,
        have=verdict.have,
        need=verdict.need,
        problem=problem.identifier if problem else "",
        why=f"{problem.cause} {check.why}" if problem else check.why,
        fix=mend(problem, values) if problem else "",
        seconds=round(outcome.seconds, 3),
        facts=outcome.facts or {},
        output=outcome.text if outcome.facts is None else "",
        replaces=_names(problem.replaces, values) if problem else frozenset(),
        follows=_names(problem.follows, values) if problem else frozenset(),
        first=problem is not None and problem.first,
    )


def _values(verdict: Verdict, context: Context) -> dict[str, str]:
    """What fills the names of a mend: the verdict's, and how to put packages back as they are."""
    packages = context.packages()
    torch = packages.get("installed", {}).get("torch", "").partition("+")[0]
    values = {name: anew(name, packages) for name in ("torch", "transformers", "triton")}
    values |= {"public": f"torch=={torch}" if torch else "torch", **verdict.values}
    if package := distribution_of(values.get("module", "")):
        values |= {"package": package, "distribution": anew(package, packages)}
    return values


def _names(template: str, values: Mapping[str, str]) -> frozenset[str]:
    """The packages that a problem names; names that are not known are left out."""
    filled = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1]) or "", template)
    return frozenset(map(canonical, filled.split()))


def mend(problem: Problem, values: Mapping[str, str]) -> str:
    """A problem's mend with its names filled in; a name that is not known stays in capitals."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1]) or m[1].upper(), problem.mend)


def _how_it_ended(outcome: Outcome) -> str:
    """Such as ``raised ImportError: no such name`` or ``was ended by SIGSEGV: last words``."""
    lines = [line.strip() for line in outcome.text.splitlines() if line.strip()]
    if not lines:
        return outcome.ending
    verb, _, kind = outcome.ending.partition(" ")
    message = re.compile(rf"([\w.]+\.)?{re.escape(kind)}\b")
    begun = [index for index, line in enumerate(lines) if message.match(line)]
    if verb == "raised" and begun:  # a message may have several lines, the last mere advice
        return f"raised {' '.join(lines[begun[-1] :])[:_SHOWN]}"
    return f"{outcome.ending}: {lines[-1][:_SHOWN]}"


def words() -> set[str]:
    """Every word of the catalogue's own texts, in lower case."""
    return set(re.findall(r"[a-z0-9]+", page().lower()))


def page() -> str:
    """``docs/troubleshooting.md``."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield "# Troubleshooting"
    yield ""
    yield "Written by `python -m verify --page` from the catalogue of `verify`, not by hand."
    yield ""
    yield (
        "`python -m verify` finds out which of these you have. Each heading is the identifier that "
        "it names; search this page for the text that you see. Words in capitals stand for what "
        "it fills in, such as names, versions and indexes."
    )
    for group in GROUPS:
        yield ""
        yield f"## {group.title}"
        yield ""
        yield "| check | what it asks | runs in | why |"
        yield "| --- | --- | --- | --- |"
        for check in group.checks:
            tier = "every tier" if check.tier is Tier.QUICK else f"{check.tier.name.lower()}"
            yield f"| `{check.identifier}` | {check.title} | {tier} | {check.why} |"
        for problem in group.problems:
            yield ""
            yield f"### {problem.identifier}"
            yield ""
            for text in problem.texts:
                yield f"- ``{_shown(text)}``"
            if problem.texts:
                yield ""
            yield problem.cause
            yield ""
            yield f"**Mend:** {_shown(problem.mend)}"


def _shown(text: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), text)

"""What a check is, and what comes of one."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verify.machine import Machine
from verify.process import Facts
from verify.rows import Row


class Status(str, enum.Enum):
    """PASS, WARN (works, but), FAIL, or SKIP (not checked, and why)."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


class Tier(enum.IntEnum):
    """How much time a check may cost: seconds, a minute, minutes in all."""

    QUICK = 0
    DEFAULT = 1
    FULL = 2


@dataclass(frozen=True)
class Problem:
    """A failure with a name.

    Attributes:
        identifier: stable name, such as ``"torch.too-new-gpu"``.
        texts: what a user sees, in which ``{name}`` stands for a word and ``…`` for anything.
        cause: what is wrong, in a sentence.
        mend: the command or step that mends it; may use the names in ``texts``.
        replaces: names of the packages that the mend replaces, ``"*"`` for every one; may use
            names as `mend` does.
        follows: names of the packages because of whose present versions the mend is the right
            one; may use names as `mend` does.
        first: whether it decides which packages are seen at all, so that it is mended before
            whatever follows from their versions.
    """

    identifier: str
    texts: tuple[str, ...]
    cause: str
    mend: str
    replaces: str = ""
    follows: str = ""
    first: bool = False

    def recognise(self, output: str) -> dict[str, str] | None:
        """The words that fill the names of the first of `texts` found in ``output``."""
        found = (recognise_text(text, output) for text in self.texts)
        return next((values for values in found if values is not None), None)


def recognise_text(text: str, output: str) -> dict[str, str] | None:
    """The words that fill the names of ``text`` where it stands in ``output``."""
    match = re.search(_pattern(text), output)
    return match.groupdict() if match else None


def _pattern(text: str) -> str:
    """A regular expression for a text of a `Problem`; any white space matches any other."""
    parts = re.split(r"(\{\w+\}|…|\s+)", text)
    return "".join(_pattern_of_part(part) for part in parts)


def _pattern_of_part(part: str) -> str:
    if part.startswith("{") and part.endswith("}"):
        return rf"(?P<{part[1:-1]}>[^\s'\"`;]+?)"
    if part == "…":
        return r"[\s\S]{0,400}?"
    return r"\s+" if part.isspace() else re.escape(part)


@dataclass(frozen=True)
class Context:
    """What decisions may look at besides their own check's facts.

    Attributes:
        machine: the machine.
        rows: the compatibility matrix.
        row: the row that was asked for, if any.
        other: facts of checks that are done, by identifier.
        options: what was asked for on the command line.
        packages: gives what is installed, as the probe of ``packages.row`` finds it; whoever
            mends something asks.
    """

    machine: Machine = field(default_factory=Machine)
    rows: Mapping[str, Row] = field(default_factory=dict)
    row: Row | None = None
    other: Mapping[str, Facts] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: Callable[[], Facts] = dict


@dataclass(frozen=True)
class Verdict:
    """What a decision says; for WARN and FAIL ``problem`` names what is wrong."""

    status: Status
    have: str
    need: str = ""
    problem: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


def passed(have: str, need: str = "") -> Verdict:
    """It is as it should be."""
    return Verdict(Status.PASS, have, need)


def skipped(reason: str) -> Verdict:
    """It could not or need not be checked."""
    return Verdict(Status.SKIP, reason)


def warned(problem: str, have: str, need: str = "", **values: str) -> Verdict:
    """It works, but ``problem`` will matter."""
    return Verdict(Status.WARN, have, need, problem, values)


def failed(problem: str, have: str, need: str = "", **values: str) -> Verdict:
    """It does not work, because of ``problem``; ``values`` fill the names in its mend."""
    return Verdict(Status.FAIL, have, need, problem, values)


Decide = Callable[[Facts, Context], Verdict]


@dataclass(frozen=True)
class Check:
    """One question to the installation.

    Attributes:
        identifier: stable name; what stands before the dot is not always the group.
        title: the question's subject, in a few words.
        why: why the answer matters.
        probe: the module of `verify.probes` whose probe of the same identifier finds the facts;
            for ``"machine"`` they are the machine's own, which are found out once.
        decide: makes a verdict of the facts.
        problem: what is wrong if the probe fails with a text that no problem explains.
        tier: the cheapest tier that includes it.
        needs: checks that come before it; if one of them fails, it is skipped.
        after: checks that, if they run, come before it, because it looks at their facts.
        limit: seconds after which it is cut off.
        skip: says, from the context alone, why it cannot be checked here; empty if it can.
    """

    identifier: str
    title: str
    why: str
    probe: str
    decide: Decide
    problem: str
    tier: Tier = Tier.DEFAULT
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit: float = 60.0
    skip: Callable[[Context], str] = lambda context: ""


@dataclass(frozen=True)
class Group:
    """Checks that belong together, and the problems that they may find."""

    name: str
    title: str
    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Result:
    """What came of a check: a line of the report.

    `replaces`, `follows` and `first` are its problem's, with names filled in.
    """

    identifier: str
    group: str
    status: Status
    have: str
    need: str = ""
    problem: str = ""
    why: str = ""
    fix: str = ""
    seconds: float = 0.0
    facts: Facts = field(default_factory=dict)
    output: str = ""
    replaces: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    first: bool = False

    @property
    def label(self) -> str:
        """The problem, and the check that met it if that is called otherwise."""
        same = self.problem == self.identifier
        return self.problem if same else f"{self.problem} ({self.identifier})"

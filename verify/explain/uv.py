"""uv's resolver as an oracle: its command, its cache, and the reading of its words."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from packaging.utils import canonicalize_name

from verify.explain.errors import ExplainError
from verify.explain.oracle import Answer, World


@dataclass(frozen=True)
class Target:
    """For which environment, and out of what, a set has to resolve.

    Attributes:
        python: a version of Python such as ``"3.11"``.
        platform: uv's name of a platform; empty for this machine's.
        as_of: nothing that was published after this date counts.
        prerelease: whether pre-releases count.
        build: packages that may be built from source.
        options: more arguments for uv, such as indexes.
        offline: whether only caches are asked.
    """

    python: str = platform.python_version()
    platform: str = ""
    as_of: str = ""
    prerelease: bool = False
    build: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    offline: bool = False

    def arguments(self) -> list[str]:
        """The arguments for uv that say so."""
        words = ["--only-binary", ":all:", *self.options]
        words += ["--python-platform", self.platform] if self.platform else []
        words += ["--prerelease", "allow"] if self.prerelease else []
        for name in self.build:
            words += ["--no-binary", name]
        return words

    def __str__(self) -> str:
        date = f", as of {self.as_of}" if self.as_of else ""
        system = self.platform or f"this machine ({sys.platform})"
        return f"Python {self.python} on {system}{date}"


def find_uv() -> list[str]:
    """The command that starts uv.

    Raises:
        ExplainError: there is none.
    """
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    found = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if found:
        return [found]
    command = [sys.executable, "-m", "uv"]
    if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
        return command
    raise ExplainError("This needs uv, whose resolver it asks. Install it: pip install uv")


def cache_folder() -> Path:
    """Where answers are kept between runs."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "zo2" / "explain"


_MEANING = 2  # raised when what is kept would be read or asked otherwise
_FRESH = 3600.0  # seconds for which an answer about today's index is believed
_PATIENCE = 300.0  # seconds for one question


@dataclass
class Uv:
    """uv as an oracle, with a memory.

    Attributes:
        target: the environment in question.
        folder: where answers are kept.
        command: how uv is started.
        refresh: whether answers of earlier runs are not believed.
        asked: how many questions uv was asked in this run.

    uv checks with the index, for every question, whether what it has is still right; most of the
    time goes there. So a question is first asked of uv's own cache, and its answer is taken if
    nothing that has been published since could change it: a solution stays one, and a refusal
    stands if the index was asked about all packages in it before, in this run.
    """

    target: Target
    folder: Path = field(default_factory=cache_folder)
    command: Sequence[str] = field(default_factory=find_uv)
    refresh: bool = False
    asked: int = 0
    _known: dict[str, Answer] = field(default_factory=dict)
    _current: set[str] = field(default_factory=set)
    _version: str = ""

    def __call__(self, worlds: Sequence[World]) -> Sequence[Answer]:
        """Whether each world resolves."""
        return self._all([self._about(world) for world in worlds])

    def newest(self, packages: Sequence[tuple[str, str]]) -> Mapping[str, str]:
        """For each (package, day) the newest version published by then, if there is one."""
        today = self.target.as_of
        questions = [
            self._single(name, ("--no-deps", *self._final(name)), before=min(day, today or day))
            for name, day in packages
        ]
        found = zip(packages, self._all(questions), strict=True)
        return {name: a.versions[name] for (name, _), a in found if name in a.versions}

    def at_end(self, ranges: Sequence[str], resolution: str) -> Sequence[str]:
        """The ``highest`` or ``lowest-direct`` version of each range, or nothing."""
        ends = ("--no-deps", "--resolution", resolution)
        questions = [self._single(r, (*ends, *self._final(r))) for r in ranges]
        answers = self._all(questions)
        return [next(iter(answer.versions.values()), "") for answer in answers]

    def published(self, pins: Sequence[str]) -> Mapping[str, str]:
        """The day on which each pinned package was published, where the index says."""
        try:
            return self._days(pins)
        except ExplainError:  # uv is old, or the index keeps no hashes: do without
            return {}

    def _days(self, pins: Sequence[str]) -> Mapping[str, str]:
        arguments = ("--no-deps", "--format", "pylock.toml")
        together = replace(self._single("", arguments), requirements=tuple(sorted(pins)))
        (answer,) = self._all([together])
        if answer.resolves:
            return answer.versions  # see `_read`: for this format they are dates
        single = [self._single(pin, arguments) for pin in pins]
        return {n: day for answer in self._all(single) for n, day in answer.versions.items()}

    def pythons(self, pin: str) -> Sequence[str]:
        """The versions of Python for which there is a wheel of a pinned package."""
        versions = [f"3.{minor}" for minor in range(8, 16)]
        arguments = ("--no-deps",)
        answers = self._all([self._single(pin, arguments, python=v) for v in versions])
        return [v for v, answer in zip(versions, answers, strict=True) if answer.resolves]

    def _single(
        self, text: str, arguments: tuple[str, ...], before: str = "", python: str = ""
    ) -> _Question:
        target = self.target
        return _Question((text,), (), arguments, before or target.as_of, python or target.python)

    def _final(self, text: str) -> tuple[str, ...]:
        """Arguments by which a requirement's package does not become a pre-release."""
        return () if self.target.prerelease else ("--prerelease-package", f"{_name(text)}=disallow")

    def _about(self, world: World) -> _Question:
        """The question whether a world resolves.

        Where something may become older, the newest that resolves is the nearest; where things
        may only become newer, the oldest is. What moves does not move to a pre-release, unless it
        is one; what does not move may be one where nothing else fits, as for pip.
        """
        moved = {r.moved for r in world}
        upwards = "newer" in moved and "older" not in moved
        arguments = ["--resolution", "lowest-direct"] if upwards else []
        for requirement in sorted(world, key=str):
            if requirement.moved and not requirement.specifier.prereleases:
                arguments += self._final(requirement.text)
        return _Question(
            tuple(sorted({r.text for r in world if not r.constraint})),
            tuple(sorted({r.text for r in world if r.constraint})),
            tuple(arguments),
            self.target.as_of,
            self.target.python,
        )

    def _all(self, questions: Sequence[_Question]) -> Sequence[Answer]:
        fresh = [q for q in dict.fromkeys(questions) if self._key(q) not in self._known]
        if len(fresh) == 1:
            self._learn(fresh[0])
        elif fresh:
            with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
                for _ in pool.map(self._learn, fresh):
                    pass
        return [self._known[self._key(q)] for q in questions]

    def _learn(self, question: _Question) -> None:
        key = self._key(question)
        path = self.folder / f"{key}.json"
        fresh = None if self.target.offline or self.target.as_of else _FRESH
        answer = None if self.refresh else _recall(path, fresh)
        if answer is None:
            answer = self._from_cache(question) or self._from_index(question)
            _remember(path, answer)
        self._known[key] = answer

    def _from_cache(self, question: _Question) -> Answer | None:
        if self.target.offline or not self._current:
            return None
        try:
            answer = self._ask(question, offline=True)
        except ExplainError:  # something is not in the cache
            return None
        complete = question.names | _packages(answer.refusal) <= self._current
        if complete or (answer.resolves and "--no-deps" not in question.arguments):
            return answer
        return None

    def _from_index(self, question: _Question) -> Answer:
        answer = self._ask(question, self.target.offline)
        self._current |= question.names | answer.versions.keys() | _packages(answer.refusal)
        return answer

    def _key(self, question: _Question) -> str:
        """A name for the question, the same whenever the answer must be."""
        self._version = self._version or self._uv_version()
        settings = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("UV_") and name not in ("UV_CACHE_DIR", "UV_OFFLINE")
        }
        asker = (_MEANING, self._version, sys.platform, platform.machine())
        parts = (asker, self.target.arguments(), asdict(question), settings)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _uv_version(self) -> str:
        done = subprocess.run([*self.command, "--version"], capture_output=True, text=True)
        return done.stdout.strip()

    def _ask(self, question: _Question, offline: bool) -> Answer:
        self.asked += 1
        words = [*self.command, "pip", "compile", "--no-header", "--annotation-style", "line"]
        words += ["--color", "never", "--no-progress"]
        # the Python in question need not be here; looking for it would take most of the time
        words += ["--python", sys.executable, "--no-python-downloads"]
        words += [*self.target.arguments(), *question.arguments]
        words += ["--python-version", question.python]
        words += ["--exclude-newer", question.before] if question.before else []
        words += ["--offline"] if offline else []
        with tempfile.TemporaryDirectory() as folder:
            asked = Path(folder, "requirements.txt")
            asked.write_text("\n".join(question.requirements) + "\n", encoding="utf-8")
            words += [str(asked)]
            if question.constraints:
                limits = Path(folder, "constraints.txt")
                limits.write_text("\n".join(question.constraints) + "\n", encoding="utf-8")
                words += ["-c", str(limits)]
            try:
                done = subprocess.run(
                    words, capture_output=True, text=True, encoding="utf-8", timeout=_PATIENCE
                )
            except subprocess.TimeoutExpired:
                raise ExplainError(
                    f"uv did not decide within {_PATIENCE:.0f} s whether "
                    f"{', '.join(question.requirements)} resolve. Pin more of them."
                ) from None
        if done.returncode == 0:
            return replace(_read(done.stdout), warnings=_warnings(done.stderr))
        return Answer(refusal=_refusal(done.stderr, question))


@dataclass(frozen=True)
class _Question:
    """One call of uv."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    before: str = ""
    python: str = ""

    @property
    def names(self) -> set[str]:
        """The packages that are asked about."""
        return {_name(text) for text in self.requirements}


def _name(text: str) -> str:
    return canonicalize_name(re.split(r"[^A-Za-z0-9._-]", text)[0])


def _read(output: str) -> Answer:
    """What uv chose; of a lock in TOML, the dates instead of the versions."""
    if output.startswith("lock-version"):
        return Answer(dict(_dates(output)))
    versions: dict[str, str] = {}
    parents: dict[str, Sequence[str]] = {}
    for line in output.splitlines():
        found = re.match(r"([A-Za-z0-9._-]+)(?:==(\S+))?", line)
        if not found or line.startswith(("#", " ", "-")):
            continue
        name = canonicalize_name(found[1])
        versions[name] = found[2] or ""
        _, _, via = line.partition("# via ")
        asked = (p.strip() for p in via.split(","))
        parents[name] = [canonicalize_name(p) for p in asked if p and not p.startswith("-")]
    return Answer(versions, parents)


def _dates(lock: str) -> Iterable[tuple[str, str]]:
    for block in lock.split("[[packages]]")[1:]:
        name = re.search(r'^name = "([^"]+)"', block, re.MULTILINE)
        times = re.findall(r"upload-time = (\d{4}-\d\d-\d\d)", block)
        if name and times:
            yield canonicalize_name(name[1]), min(times)


def _warnings(said: str) -> list[str]:
    """The warnings that are about the requirements."""
    lines = [line.strip() for line in said.splitlines()]
    told = [line.removeprefix("warning:").strip() for line in lines if line.startswith("warning:")]
    return [w for w in told if "extra" in w or "yanked" in w]


def _packages(refusal: str) -> set[str]:
    """The packages of whose versions a refusal says something."""
    found = re.findall(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?=[\[{]|[<>=!~]=|[<>])", refusal)
    return {str(canonicalize_name(name)) for name in found} - {"python"}


_CONFLICT = "No solution found when resolving dependencies"


def _refusal(said: str, question: _Question) -> str:
    """Why uv refuses, if they are a conflict.

    Raises:
        ExplainError: uv could not decide, so nothing is known about the requirements.
    """
    denied = re.search(r"\b(401 Unauthorized|403 Forbidden)\b", said)
    if denied:  # uv goes on as if the index did not have the package
        raise ExplainError(_denial(said, denied[1]))
    if _CONFLICT not in said:
        raise ExplainError(_trouble(said))
    if "in the cache" in said or "network was disabled" in said:
        raise ExplainError(
            "The answer is in no cache, and the package index may not be asked (offline). "
            f"Asked was: {', '.join(question.requirements[:8])}. Run once with a connection."
        )
    _, _, reasons = said.partition("cause:")
    return (reasons or said).strip()


def _denial(said: str, status: str) -> str:
    """One sentence about who lets nobody in, and what to do."""
    hint = said.partition("hint:")[2] or said
    where = re.search(r"\w+://[^\s`'\")]+", hint)
    return (
        f"The index{f' {where[0]}' if where else ''} refused access ({status}). Nothing is known "
        "about the requirements. Check the address, and the user name and password that belong "
        "to it (in the address, or in ~/.netrc)."
    )


def _trouble(said: str) -> str:
    """One sentence about why uv gave no answer."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line.removeprefix("cause:").strip() for line in lines if line.startswith("cause:")]
    first = next((x.removeprefix("error:").strip() for x in lines if x.startswith("error:")), said)
    if "Git operation failed" in said:
        # its command is among the causes, its own words follow them
        fatal = [line.removeprefix("fatal:").strip() for line in lines if "fatal:" in line]
        told = fatal[-1] if fatal else causes[-1]
        return (
            f"Git could not get what is asked for: {told.rstrip('.')}. Nothing is known about the "
            "requirements. Check the address, the branch, and the connection."
        )
    network = re.search(r"[Ff]ailed to fetch:? `?(\w+://[^\s`]+)", said)
    if network or "error sending request" in said or "dns error" in said:
        where = network[1] if network else "The package index"
        return (
            f"{where} cannot be reached: {causes[-1] if causes else first}. "
            "Nothing is known about the requirements. Check the connection, or use --offline "
            "with a cache that has the answer."
        )
    if "unexpected argument" in said:
        return f"This uv is too old ({first}). Update it to 0.13 or newer: pip install -U uv"
    if "invalid value" in said:
        return f"uv does not take this: {first}."
    more = f": {causes[-1]}" if causes else ""
    return f"uv could not decide: {first}{more}."


def _recall(path: Path, limit: float | None) -> Answer | None:
    try:
        if limit is not None and time.time() - path.stat().st_mtime > limit:
            return None
        return Answer(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _remember(path: Path, answer: Answer) -> None:
    """Keep an answer; a cache that cannot be written only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            json.dump(asdict(answer), file)
        os.replace(file.name, path)
    except OSError:
        pass

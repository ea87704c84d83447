"""Write locks with pip-tools, one per row and version of Python.

pip-tools resolves for the interpreter that runs it, so there is one small environment per version
of Python. It sees no setting of this machine but how to reach the index, and what it writes is
refused if it names anything of the machine that wrote it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs import environment, lockfile, matrix, pythons, requirements
from envs.errors import EnvsError
from envs.lockfile import Entry, Lock
from verify.rows import Row

_OPTIONS = (
    "--generate-hashes",
    "--strip-extras",
    "--allow-unsafe",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-emit-trusted-host",
    "--no-config",
)
# what pip may know of this machine: how to reach the index, nothing that adds packages
_REACH = (
    "index-url",
    "cert",
    "client-cert",
    "proxy",
    "retries",
    "timeout",
    "default-timeout",
    "trusted-host",
)


@dataclass(frozen=True)
class Change:
    """One package whose version a new lock moved; None stands for not there."""

    lock: str
    package: str
    old: str | None
    new: str | None


class UnsolvableError(EnvsError):
    """No set of versions satisfies a row."""

    def __init__(self, row: Row, python: str, resolver: str) -> None:
        """Keep the row, the version of Python, and the last words of the resolver."""
        super().__init__(f"row {row.name} cannot be solved for Python {python}:\n{resolver}")
        self.row = row
        self.python = python


def prepare(rows: Sequence[Row]) -> None:
    """Make the environments that write the locks of ``rows``.

    Raises:
        EnvsError: a version of Python is not installed.
    """
    needed = {python: row.name for row in rows for python in row.pythons}
    for python, name in sorted(needed.items()):
        pythons.choose([python], f"the lock of row {name}")
        _tools(python)


def solve_row(row: Row, past: Mapping[str, Sequence[Entry]]) -> list[Lock]:
    """The locks of ``row``, one per Python; nothing is stored.

    Args:
        row: the row.
        past: entries of earlier locks, by Python. Versions that no pin fixes stay as they are
            there, and hashes that are there are not asked for again. What moved for one Python
            moves for the next one too.

    Raises:
        EnvsError: a lock would name something of this machine.
        UnsolvableError: no versions satisfy the row.
    """
    first, *others = row.pythons
    locks = [solve(row, first, past.get(first, ()))]
    for python in others:
        start = start_from(past.get(python, ()), past.get(first, ()), locks[0].entries)
        locks.append(solve(row, python, start))
    return locks


def start_from(
    past: Sequence[Entry], other_past: Sequence[Entry], other: Sequence[Entry]
) -> tuple[Entry, ...]:
    """Where to start a lock from: its past, moved as that of another Python has moved.

    Args:
        past: the lock as it is, or nothing.
        other_past: the lock of the other Python as it was.
        other: the same as it is now.
    """
    own = {entry.name: entry for entry in past}
    same = {
        entry.name
        for entry in other_past
        if entry.name in own and own[entry.name].seal == entry.seal
    }
    moved = {e.name: e for e in other if e.name in same or e.name not in own}
    return tuple({**own, **moved}.values())


def solve(row: Row, python: str, start: Sequence[Entry]) -> Lock:
    """The lock of ``row`` for ``python``, by pip-tools.

    Args:
        row: the row.
        python: such as ``"3.11"``.
        start: entries whose versions are kept where they still do.

    Raises:
        UnsolvableError: no versions satisfy the row.
        EnvsError: the result names something of this machine.
    """
    asked = {"row": requirements.of_row(row), "zo2": requirements.of_package()}
    tools = _tools(python)
    with tempfile.TemporaryDirectory() as work:
        for name, lines in asked.items():
            Path(work, f"{name}.in").write_text("\n".join(lines) + "\n", encoding="utf-8")
        output = Path(work, "lock.txt")
        if start:
            output.write_text(Lock("", "", "", "", tuple(start)).text(), encoding="utf-8")
        command = [tools, "-m", "piptools", "compile", *_OPTIONS]
        command += ["--cache-dir", str(Path(work, "cache")), "-o", "lock.txt", "row.in", "zo2.in"]
        done = subprocess.run(
            command,
            cwd=work,
            env=_settings(tools),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _failure(row, python, asked, done.stderr)
        text = output.read_text(encoding="utf-8")
    # who asked is said in terms of the project's files, not of these temporary ones
    text = text.replace("-r row.in", "envs/matrix.toml").replace("-r zo2.in", "pyproject.toml")
    entries = lockfile.parse(text, f"what pip-tools wrote for {row.lock_name(python)}")
    tool_names = ", ".join(f"{name} {version}" for name, version in sorted(matrix.tools().items()))
    digest = lockfile.digest_inputs(asked["row"] + asked["zo2"])
    return Lock(row.name, python, tool_names, digest, entries)


def _failure(row: Row, python: str, asked: Mapping[str, Sequence[str]], words: str) -> EnvsError:
    """What pip-tools' output comes to: no solution, or something that is not the row's fault."""

    def requirement(place: re.Match[str]) -> str:
        return asked[place[1]][int(place[2]) - 1]

    name = row.lock_name(python)
    if missing := re.search(r"requirement (\S+) \(from versions: none\)", words):
        return EnvsError(f"{name}: the package index does not answer, or has no {missing[1]}")
    words = re.sub(r"-r (row|zo2)\.in \(line (\d+)\)", requirement, words)
    said = [line.strip() for line in words.splitlines() if line.strip()] or ["no output"]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    if "ResolutionImpossible" in words or "No matching distribution" in words:
        return UnsolvableError(row, python, "\n".join(errors or said[-1:]))
    return EnvsError(f"{name}: pip-tools failed: {said[-1]}")


def compare(lock: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[Change]:
    """The packages whose version differs, by name."""
    return [
        Change(lock, package, old.get(package), new.get(package))
        for package in sorted({*old, *new})
        if old.get(package) != new.get(package)
    ]


def explain(problem: UnsolvableError) -> str:
    """Why the row does not solve and what would mend it, by `verify explain`."""
    asked = requirements.of_row(problem.row) + requirements.of_package()
    with tempfile.TemporaryDirectory() as work:
        name = f"{problem.row.name}.in"
        Path(work, name).write_text("\n".join(asked) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "verify", "explain", "-r", name]
        command += ["--python", problem.python, "--platform", "linux"]
        done = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(matrix.ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    return done.stdout.strip() or f"{problem}\n{done.stderr.strip()}"


def _tools(python: str) -> str:
    """The interpreter of an environment with the pinned pip-tools for ``python``."""
    versions = matrix.tools()
    wanted = [f"{name}=={version}" for name, version in sorted(versions.items())]
    folder = matrix.ROOT / ".nox" / "lock-tools" / f"py{python.replace('.', '')}"
    stamp = folder / "tools.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        environment.create(python, folder)
        environment.install(folder, *wanted)
        stamp.write_text("\n".join(wanted))
    return str(folder / "bin" / "python")


def _settings(tools: str) -> dict[str, str]:
    """The environment for pip: this machine's way to the index, and no other of its settings."""
    listed = subprocess.run(
        [tools, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        option = key.rpartition(".")[2]
        if option in _REACH:
            settings[f"PIP_{option.upper().replace('-', '_')}"] = value.strip("'")
    return {
        **settings,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # reads a wheel's metadata by range requests where the index serves none beside it
        "PIP_USE_FEATURE": "fast-deps",
    }

"""Which interpreters this machine has: on PATH, and those of pyenv and uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from envs.errors import EnvsError

_ALL = tuple(f"3.{minor}" for minor in range(9, 16))


@lru_cache
def find(version: str) -> Path | None:
    """The interpreter of ``version`` (such as ``"3.11"``), or None; it was run to make sure."""
    for candidate in _candidates(version):
        if candidate.is_file() and _version_of(candidate) == version:
            return candidate
    return None


def choose(versions: Sequence[str], whom: str) -> str:
    """The first of ``versions`` that is installed.

    Args:
        versions: those that would do, the preferred one first.
        whom: what needs it, for the message.

    Raises:
        EnvsError: none is; the sentence names those that would do and those that are there.
    """
    for version in versions:
        if find(version):
            return version
    found = ", ".join(version for version in _ALL if find(version)) or "none"
    raise EnvsError(
        f"{whom} needs Python {' or '.join(versions)}; installed here: {found}. "
        f"Install one, for example with `uv python install {versions[0]}`"
    )


def _candidates(version: str) -> Iterator[Path]:
    yield Path(getattr(sys, "_base_executable", sys.executable))
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder) / f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
    if uv := shutil.which("uv"):
        command = [uv, "python", "find", "--no-python-downloads", "--managed-python", version]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield Path(found.stdout.strip())


def _version_of(interpreter: Path) -> str | None:
    """What the interpreter says that it is; None if it does not run (a shim of pyenv may not)."""
    command = [str(interpreter), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None

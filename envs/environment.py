"""An environment with exactly what a lock says, and the package itself beside it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs import lockfile, matrix, pythons
from envs.errors import EnvsError
from verify.rows import Row

FOLDER = matrix.ROOT / ".nox" / "rows"
LOCKS = matrix.ROOT / "lockfiles"


@dataclass(frozen=True)
class Environment:
    """A built environment: its folder, the row and the version of Python."""

    folder: Path
    row: Row
    python: str

    def script(self, name: str) -> str:
        """The path of a command in it, such as ``python``."""
        return str(self.folder / "bin" / name)


def build(
    row: Row,
    python: str | None = None,
    say: Callable[[str], object] = print,
    folder: Path = FOLDER,
) -> Environment:
    """The environment of ``row``, hashes enforced; kept as long as the lock stays the same.

    Args:
        row: the row.
        python: version of Python, by default the row's first that is installed.
        say: takes one line of progress.
        folder: where environments are kept.

    Raises:
        EnvsError: no such Python, a damaged lock, or the installation failed.
    """
    if python and python not in row.pythons:
        raise EnvsError(
            f"row {row.name} has locks for Python {', '.join(row.pythons)}, not {python}"
        )
    version = pythons.choose([python] if python else row.pythons, f"row {row.name}")
    lock = LOCKS / row.lock_name(version)
    lockfile.read(lock, matrix.relative(lock))
    home = folder / lock.stem
    stamp = home / "lock.sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        say(f"row {row.name}, Python {version}: installing {matrix.relative(lock)}")
        create(version, home)
        install(home, "--require-hashes", "--no-deps", "-r", str(lock))
        # the lock has setuptools, so this needs no network and leaves the versions as they are
        install(home, "--no-deps", "--no-build-isolation", "--editable", str(matrix.ROOT))
        stamp.write_text(digest)
    return Environment(home, row, version)


def create(version: str, folder: Path) -> None:
    """Make an empty environment in place of what ``folder`` holds, by uv or by virtualenv."""
    interpreter = str(pythons.find(version))
    shutil.rmtree(folder, ignore_errors=True)
    if uv := find_uv():
        _run([uv, "venv", "--quiet", "--python", interpreter, str(folder)])
    else:
        _run([sys.executable, "-m", "virtualenv", "--quiet", "--python", interpreter, str(folder)])


def install(folder: Path, *arguments: str) -> None:
    """Run ``pip install`` with these arguments in the environment, by uv or by its own pip."""
    python = str(folder / "bin" / "python")
    if uv := find_uv():
        _run([uv, "pip", "install", "--quiet", "--python", python, *arguments])
    else:
        _run([python, "-m", "pip", "install", "--quiet", *arguments])


def find_uv() -> str | None:
    """The command uv: on PATH, or beside this interpreter."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvsError(f"`{' '.join(command[:4])} ...` failed:\n{done.stderr.strip()[-3000:]}")

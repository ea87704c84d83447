"""Environments from locks: real installers, on wheels that the tests make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envs import environment, lockfile, matrix
from envs.errors import EnvsError
from envs.lockfile import Entry, Lock
from tests.envs.wheels import digest, wheel

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that pip and uv take everything from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for installer in ("PIP", "UV"):
        monkeypatch.setenv(f"{installer}_NO_INDEX", "1")
        monkeypatch.setenv(f"{installer}_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    return folder


@pytest.fixture(params=["uv", "virtualenv"])
def backend(request, monkeypatch) -> str:
    if request.param == "uv" and not environment.find_uv():
        pytest.skip("uv is not installed")
    if request.param == "virtualenv":
        pytest.importorskip("virtualenv", reason="virtualenv is not installed")
        monkeypatch.setattr(environment, "find_uv", lambda: None)
    return request.param


def write_lock(path: Path, *wheels: Path) -> None:
    entries = tuple(
        Entry(w.name.split("-")[0], w.name.split("-")[1], "", (digest(w),), ("test",))
        for w in wheels
    )
    path.write_text(Lock("row", HERE, "test", "sha256:0", entries).text())


def test_what_the_lock_says_is_installed(tmp_path, wheels, backend):
    lock = tmp_path / "lock.txt"
    # a newer one lies beside it, and a dependency that the lock does not name
    write_lock(lock, wheel(wheels, "thing", "1.0", ["other"]))
    wheel(wheels, "thing", "2.0")
    home = tmp_path / "environment"
    environment.create(HERE, home)
    environment.install(home, "--require-hashes", "--no-deps", "-r", str(lock))
    code = "import thing, importlib.util as u; print(thing.version, u.find_spec('other'))"
    command = [home / "bin" / "python", "-c", code]
    assert subprocess.check_output(command, text=True).split() == ["1.0", "None"]


def test_a_file_with_another_digest_is_refused(tmp_path, wheels, backend):
    lock = tmp_path / "lock.txt"
    path = wheel(wheels, "thing", "1.0")
    write_lock(lock, path)
    wheel(wheels, "thing", "1.0", ["evil"])  # the same name and version, other contents
    home = tmp_path / "environment"
    environment.create(HERE, home)
    with pytest.raises(EnvsError, match="failed"):
        environment.install(home, "--require-hashes", "--no-deps", "-r", str(lock))
    assert not list(home.rglob("thing.py"))


def test_a_damaged_lock_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    row = matrix.load()["tf451"]
    python = next(p for p in row.pythons if p == HERE) if HERE in row.pythons else None
    if python is None:
        pytest.skip(f"row {row.name} has no lock for Python {HERE}")
    monkeypatch.setattr(environment, "LOCKS", tmp_path)
    text = (matrix.ROOT / "lockfiles" / row.lock_name(python)).read_text()
    (tmp_path / row.lock_name(python)).write_text(text.replace("torch==2.4.0", "torch==2.4.1"))
    with pytest.raises(EnvsError, match=r"\.txt:\d+: the entry of torch was changed by hand"):
        environment.build(row, python, folder=tmp_path / "environments")
    assert not (tmp_path / "environments").exists()


def test_a_python_without_lock_is_refused():
    row = matrix.load()["tf451"]
    with pytest.raises(EnvsError, match=r"row tf451 has locks for Python 3\.11, .*, not 3\.13"):
        environment.build(row, "3.13")


def test_a_fresh_lock_reads_back(tmp_path):
    write_lock(tmp_path / "lock.txt", wheel(tmp_path, "thing", "1.0"))
    assert lockfile.read(tmp_path / "lock.txt", "lock.txt").versions == {"thing": "1.0"}

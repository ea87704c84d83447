"""Writing locks: the real pip-tools, on an index in a folder."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from envs import lock, lockfile, matrix, requirements
from envs.errors import EnvsError
from envs.lockfile import Entry
from tests.envs.wheels import digest, index, wheel

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """The environment of pip-tools; it comes from the package index."""
    try:
        lock._tools(HERE)
    except Exception as error:
        pytest.skip(f"pip-tools could not be installed: {str(error).splitlines()[-1]}")


@pytest.fixture
def wheels(tmp_path) -> list[Path]:
    folder = tmp_path / "wheels"
    return [
        wheel(folder, "alpha", "1.0", ["beta>=1"]),
        wheel(folder, "alpha", "2.0", ["beta>=2"]),
        wheel(folder, "beta", "1.0"),
        wheel(folder, "beta", "2.0"),
        wheel(folder, "gamma", "1.0", ["beta<2"]),
        wheel(folder, "setuptools", "80.0"),
    ]


@pytest.fixture
def row(tmp_path, wheels, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", index(tmp_path / "index", wheels))
    monkeypatch.setattr(requirements, "of_package", lambda: ["gamma>=1", "setuptools>=77"])
    first = matrix.load()["tf451"]
    return dataclasses.replace(first, name="row", pythons=(HERE,), pins={"alpha": "1.0"})


def test_a_row_is_solved_with_hashes(row, wheels):
    (solved,) = lock.solve_row(row, {})
    assert solved.versions == {"alpha": "1.0", "beta": "1.0", "gamma": "1.0", "setuptools": "80.0"}
    by_name = {e.name: e for e in solved.entries}
    assert by_name["beta"].hashes == (digest(wheels[2]),)
    assert by_name["alpha"].via == ("envs/matrix.toml",)
    assert set(by_name["beta"].via) == {"alpha", "gamma"}
    assert by_name["gamma"].via == ("pyproject.toml",)


def test_twice_gives_the_same_bytes(row):
    (first,) = lock.solve_row(row, {})
    (second,) = lock.solve_row(row, {})
    (third,) = lock.solve_row(row, {HERE: first.entries})
    assert first.text() == second.text() == third.text()


def test_nothing_of_this_machine_gets_in(row, tmp_path, monkeypatch):
    """A folder of newer and local builds, as a machine's pip configuration may add."""
    extra = tmp_path / "extra"
    wheel(extra, "beta", "1.5")
    wheel(extra, "gamma", "1.0+cpu", ["beta<2"])
    monkeypatch.setenv("PIP_FIND_LINKS", str(extra))
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nfind-links = {extra}\nextra-index-url = {extra.as_uri()}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    (solved,) = lock.solve_row(row, {})
    assert solved.versions["beta"] == "1.0"
    assert solved.versions["gamma"] == "1.0"
    assert str(tmp_path) not in solved.text()


def test_versions_stay_unless_upgraded(row, tmp_path, wheels, monkeypatch):
    monkeypatch.setattr(requirements, "of_package", lambda: ["delta", "setuptools"])
    folder = tmp_path / "more"
    old = [*wheels, wheel(folder, "delta", "1.0")]
    monkeypatch.setenv("PIP_INDEX_URL", index(tmp_path / "index-1", old))
    (before,) = lock.solve_row(row, {})
    new = [*old, wheel(folder, "delta", "1.1")]
    monkeypatch.setenv("PIP_INDEX_URL", index(tmp_path / "index-2", new))
    (kept,) = lock.solve_row(row, {HERE: before.entries})
    assert kept.text() == before.text()
    (upgraded,) = lock.solve_row(row, {})
    changes = lock.compare("row", kept.versions, upgraded.versions)
    assert changes == [lock.Change("row", "delta", "1.0", "1.1")]


def test_what_cannot_be_solved_says_so(row):
    impossible = dataclasses.replace(row, pins={"alpha": "2.0"})  # needs beta>=2, gamma beta<2
    with pytest.raises(lock.UnsolvableError) as caught:
        lock.solve_row(impossible, {})
    assert f"row row cannot be solved for Python {HERE}" in str(caught.value)
    assert "alpha==2.0" in str(caught.value)
    assert "gamma" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_version_that_does_not_exist_says_so(row):
    with pytest.raises(lock.UnsolvableError, match="alpha==3"):
        lock.solve_row(dataclasses.replace(row, pins={"alpha": "3.0"}), {})


def test_an_index_that_does_not_answer_is_no_conflict(row, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(EnvsError, match="does not answer, or has no alpha") as caught:
        lock.solve_row(row, {})
    assert not isinstance(caught.value, lock.UnsolvableError)


def test_what_moved_for_one_python_moves_for_the_next():
    def entry(name: str, version: str) -> Entry:
        return Entry(name, version, "", ("0" * 64,), ("x",))

    past = [entry("shared", "1"), entry("own", "1"), entry("differs", "0.9")]
    other_past = [entry("shared", "1"), entry("differs", "1.0")]
    other = [entry("shared", "2"), entry("differs", "2.0"), entry("new", "1")]
    start = {e.name: e.version for e in lock.start_from(past, other_past, other)}
    assert start == {"shared": "2", "own": "1", "differs": "0.9", "new": "1"}


def test_changes():
    old, new = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}
    assert [(c.package, c.old, c.new) for c in lock.compare("x", old, new)] == [
        ("b", "1", "2"),
        ("c", "1", None),
        ("d", None, "1"),
    ]


def test_a_lock_is_read_as_written(row, tmp_path):
    (solved,) = lock.solve_row(row, {})
    path = tmp_path / "lock.txt"
    path.write_text(solved.text())
    assert lockfile.read(path, "lock.txt").versions == solved.versions

"""Interpreters: what answers is believed, what only has the name is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from envs import pythons
from envs.errors import EnvsError

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A folder that is all of PATH, and no interpreter managers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    pythons.find.cache_clear()
    yield tmp_path
    pythons.find.cache_clear()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_running_one_is_found(path):
    found = pythons.find(HERE)
    assert found is not None
    answer = os.popen(f"{found} -c 'import sys; print(sys.version_info[:2])'").read()
    assert answer.strip() == str(sys.version_info[:2])


def test_a_shim_that_does_not_run_is_passed_over(path):
    script(path / "python3.99", "echo 'command not found' >&2; exit 127")
    assert pythons.find("3.99") is None
    script(path / "pyenv/versions/3.99.4/bin/python3.99", "echo 3.99")
    pythons.find.cache_clear()
    assert pythons.find("3.99") == path / "pyenv/versions/3.99.4/bin/python3.99"


def test_one_that_says_another_version_is_passed_over(path):
    script(path / "python3.99", "echo 3.98")
    assert pythons.find("3.99") is None


def test_choose_takes_the_first_that_is_there(path):
    assert pythons.choose(["3.99", HERE], "row x") == HERE


def test_a_missing_one_is_named_with_those_that_would_do(path):
    with pytest.raises(EnvsError) as caught:
        pythons.choose(["3.98", "3.99"], "row x")
    assert f"row x needs Python 3.98 or 3.99; installed here: {HERE}" in str(caught.value)
    assert "\n" not in str(caught.value)

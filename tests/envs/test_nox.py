"""What a user of nox meets: one line for a mistake, and the right exit code."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from envs import matrix

pytest.importorskip("nox", reason="nox is not installed in this environment")


def nox(*arguments: str, cwd=matrix.ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nox", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    shutil.copy(matrix.ROOT / "noxfile.py", tmp_path)
    shutil.copy(matrix.ROOT / "pyproject.toml", tmp_path)
    shutil.copy(matrix.ROOT / ".dockerignore", tmp_path)
    for name in ("envs", "verify", "lockfiles", "docs", "docker"):
        shutil.copytree(matrix.ROOT / name, tmp_path / name)
    return tmp_path


def test_sessions_are_listed():
    done = nox("-l")
    assert done.returncode == 0
    for name in matrix.load():
        assert f"tests-matrix({name})" in done.stdout
    for session in ("verify", "lock", "matrix", "tests", "lint"):
        assert f" {session} -> " in done.stdout


def test_unknown_row():
    done = nox("-s", "verify", "--", "--row", "tf54")
    assert done.returncode == 1
    assert "there is no row 'tf54'; did you mean tf5" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_is_green_here_and_red_for_a_change(copy):
    done = nox("-s", "lock", "--", "--check", cwd=copy)
    assert done.returncode == 0, done.stderr
    path = copy / "lockfiles" / "tf451-py311.txt"
    path.write_text(path.read_text().replace("numpy==1.26.4", "numpy==1.26.5"))
    done = nox("-s", "lock", "--", "--check", cwd=copy)
    assert done.returncode == 1
    output = done.stdout + done.stderr
    (line,) = [x for x in output.splitlines() if x.startswith("error:")]
    assert "lockfiles/tf451-py311.txt:" in line
    assert "the entry of numpy was changed by hand" in line


def test_a_broken_table_is_one_line_for_every_session(copy):
    path = copy / "envs" / "matrix.toml"
    path.write_text(path.read_text().replace("[rows.tf457]", "[rows.tf451]"))
    done = nox("-l", cwd=copy)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: envs/matrix.toml: Cannot")

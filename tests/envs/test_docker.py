"""The text of the Dockerfiles, and of what builds all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from envs import docker, lockfile, matrix
from envs.errors import EnvsError

ROWS = matrix.load()
INSTRUCTIONS = {
    "ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "LABEL", "USER",
    "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip
# every name that stands behind a slash, but for those of the row's own files
PLACES = {
    "apt", "bin", "build", "cache", "data", "dev", "etc", "gcc", "group", "include", "lib",
    "library", "lists", "lock.txt", "log", "lto1", "matrix.toml", "null", "numba", "opt", "passwd",
    "pip", "pip.conf", "python", "sh", "stdio.h", "usr", "var", "wheelhouse", "zo2",
}  # fmt: skip


def text_of(name: str) -> str:
    return (matrix.ROOT / docker.path(ROWS[name])).read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and words of each instruction, with comments gone and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines()]  # type: ignore[misc]


def lock_of(name: str) -> lockfile.Lock:
    row = ROWS[name]
    path = matrix.ROOT / "lockfiles" / row.lock_name(row.pythons[0])
    return lockfile.read(path, path.name)


def test_every_row_has_one_and_no_other_is_there():
    found = {path.name for path in (matrix.ROOT / "docker").glob("*.Dockerfile")}
    assert found == {f"{name}.Dockerfile" for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_every_builder_knows_its_syntax(name):
    text = text_of(name)
    assert {instruction for instruction, _ in instructions(text)} <= INSTRUCTIONS
    assert not re.search(r"^\s*#\s*syntax\s*=", text, re.MULTILINE)
    assert "<<" not in text
    assert not re.search(r"COPY .*--(link|parents|exclude)", text)
    assert not re.search(r"\$\{\w+[%#/]", text)
    mounts = re.findall(r"--mount=type=(\w+)", text)
    assert set(mounts) == {"cache", "bind", "secret"}


@pytest.mark.parametrize("name", ROWS)
def test_a_linter_has_nothing_to_say(name):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [linter, str(matrix.ROOT / docker.path(ROWS[name]))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ROWS)
def test_no_place_but_the_base_is_named(name):
    text = text_of(name)
    assert "://" not in text
    assert not re.search(r"index-url|trusted-host|proxy|\.crt", text)
    row = ROWS[name]
    own = {Path(docker.path(row)).name, row.lock_name(row.pythons[0])}
    assert set(re.findall(r"/(\w[\w.-]*)", text)) == PLACES | own
    hosts = set(re.findall(r'\b[\w-]+(?:\.[\w-]+)*\.(?:io|org|com|net)/[^\s"]*', text))
    assert hosts == {docker.base(ROWS[name], matrix.bases())}


@pytest.mark.parametrize("name", ROWS)
def test_the_base_is_of_the_rows_python_by_digest_and_can_be_named(name):
    steps = instructions(text_of(name))
    (base,) = [words for what, words in steps if what == "ARG" and words.startswith("BASE=")]
    python = re.escape(ROWS[name].pythons[0])
    assert re.fullmatch(rf"BASE=.*/python:{python}-slim-bookworm@sha256:[0-9a-f]{{64}}", base)
    froms = [words.split()[0] for what, words in steps if what == "FROM"]
    assert set(froms) == {"${BASE}", "packages", "runtime"}


def test_a_row_whose_python_has_no_base():
    with pytest.raises(EnvsError, match=r"bases: row tf451 needs the digest of .*python:3.11-slim"):
        docker.base(ROWS["tf451"], {"3.12": "sha256:" + "0" * 64})


def test_a_base_that_is_no_digest(tmp_path):
    path = tmp_path / "matrix.toml"
    path.write_text('[bases]\n"3.11" = "sha256:12"\n')
    with pytest.raises(EnvsError, match=r"matrix.toml: bases: \"3.11\" is 'sha256:12'"):
        matrix.bases(path)


@pytest.mark.parametrize("name", ROWS)
def test_labels_say_what_is_locked(name):
    row, lock = ROWS[name], lock_of(name)
    (labels,) = [
        words for instruction, words in instructions(text_of(name)) if instruction == "LABEL"
    ]
    found = dict(re.findall(r'(\S+)="([^"]*)"', labels))
    assert found["zo2.row"] == name
    assert found["zo2.lock"] == f"sha256:{lock.seal}"
    assert found["zo2.torch"] == lock.versions["torch"]
    assert found["zo2.transformers"] == lock.versions["transformers"]
    assert found["zo2.python"] == row.pythons[0]
    assert found["org.opencontainers.image.revision"] == "${REVISION}"


@pytest.mark.parametrize("name", ROWS)
def test_hashes_are_enforced_before_the_source_comes(name):
    steps = instructions(text_of(name))
    runs = [i for i, (what, words) in enumerate(steps) if "--require-hashes" in words]
    sources = [i for i, step in enumerate(steps) if step == ("COPY", "zo2 zo2")]
    assert len(runs) == len(sources) == 1
    assert runs[0] < sources[0]
    assert "lockfiles/" + ROWS[name].lock_name(ROWS[name].pythons[0]) in text_of(name)
    assert "--no-deps" in steps[runs[0]][1]


@pytest.mark.parametrize("name", ROWS)
def test_what_runs_is_no_root_and_verifies_itself(name):
    stages = text_of(name).split("\nFROM ")
    last = dict(instructions("FROM " + stages[-1]))
    assert last["USER"] == "1000:1000"
    assert json.loads(last["CMD"]) == ["zo2-verify", "--row", name]
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--"]
    assert '"zo2-verify", "--quick"' in last["HEALTHCHECK"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in last["ENV"]


def test_what_an_image_may_carry_is_what_it_sets():
    env = [words for what, words in instructions(text_of("tf451")) if what == "ENV"][-1]
    assert {*re.findall(r"(\w+)=", env)} == {"PATH", *docker.VARIABLES}


def test_builds_read_only_what_they_copy():
    allowed = {line[1:] for line in docker.ignore().splitlines() if line.startswith("!")}
    for name in ROWS:
        for what, words in instructions(text_of(name)):
            if what == "COPY" and "--from" not in words:
                for source in words.split()[:-1]:
                    assert any(source == a or source.startswith(f"{a}/") for a in allowed), source
    assert "docker/wheelhouse" in allowed  # mounted
    assert (matrix.ROOT / "docker" / "wheelhouse" / ".gitignore").exists()


def test_bake_has_every_row():
    text = (matrix.ROOT / "docker" / "bake.hcl").read_text()
    assert re.findall(r'^target "(.*)" {$', text, re.MULTILINE) == list(ROWS)
    for row in ROWS.values():
        assert f'"{docker.path(row)}"' in text
        assert f'"{docker.tag(row)}"' in text

"""The Dockerfiles and how images are built and judged, without building one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from envs import __main__ as command_line
from envs import docker, images, lockfile, matrix
from envs.errors import EnvsError

ROWS = matrix.load()
INSTRUCTIONS = {
    "ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "LABEL", "USER",
    "HEALTHCHECK", "ENTRYPOINT", "CMD",
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
    assert not re.search(r"index-url|trusted-host|proxy|/root/|/work|\.crt", text)
    hosts = set(re.findall(r'\b[\w-]+(?:\.[\w-]+)*\.(?:io|org|com|net)/[^\s"]*', text))
    assert {host.partition("@")[0] for host in hosts} == {docker.base(ROWS[name].pythons[0])}


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


# ---- builders


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_no_builder_is_one_sentence(tmp_path, monkeypatch, capsys):
    fake(tmp_path, "docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line.main(["images", "tf451"]) == 1
    assert capsys.readouterr().err == (
        "error: images need docker, podman or buildah: docker does not work here "
        "(Cannot connect to the daemon); podman is not installed; buildah is not installed\n"
    )


def test_the_first_that_works_is_taken(tmp_path, monkeypatch):
    fake(tmp_path, "docker", "exit 1")
    fake(tmp_path, "podman", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert images.find() == images.Builder("podman")


def test_build_commands():
    row = ROWS["tf451"]
    for name in images.KNOWN:
        command = images.Builder(name).build_command(row, "abc", ["--pull=never"])
        assert command[:2] == [name, "build"]
        assert ("--format=docker" in command) == (name != "docker")
        assert command[-4:] == ["--pull=never", "--file=docker/tf451.Dockerfile",
                                "--tag=zo2:tf451", "."]  # fmt: skip
        assert "--build-arg=REVISION=abc" in command


def test_a_failed_build_is_one_sentence(tmp_path, monkeypatch):
    fake(tmp_path, "podman", "exit 125")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EnvsError, match=r"row tf451: podman could not build docker/tf451.Docker"):
        images.build(images.Builder("podman"), ROWS["tf451"], say=lambda line: None)


# ---- what is found in an image


def inspected(**changes) -> str:
    """What a builder says of a good image."""
    lock = lock_of("tf451")
    version = matrix.read_toml(matrix.ROOT / "pyproject.toml")["project"]["version"]
    config = {
        "User": "1000:1000",
        "Env": ["PATH=/opt/zo2/bin", "HOME=/cache"],
        "Labels": docker.labels(ROWS["tf451"], lock, version),
        "Healthcheck": {"Test": ["CMD", "zo2-verify", "--quick"]},
    }
    return json.dumps([{"Config": {**config, **changes}}])


@pytest.fixture
def podman(tmp_path, monkeypatch):
    """A builder that knows one image, and runs everything in it with success."""

    def make(image: str, run: str = "echo fine") -> images.Builder:
        (tmp_path / "image.json").write_text(image)
        fake(
            tmp_path,
            "podman",
            f'case "$1" in image) cat {tmp_path}/image.json;; run) case "$*" in '
            f'*"find /"*) ;; *) {run};; esac;; esac',
        )
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return images.Builder("podman")

    return make


def broken_laws(builder: images.Builder) -> set[str]:
    return {f.law for f in images.check(builder, ROWS["tf451"]) if not f.holds}


UNWRITTEN = "training writes to a mounted folder as the caller"  # the false builder trains nothing


def test_a_good_image(podman):
    assert broken_laws(podman(inspected())) == {UNWRITTEN}


@pytest.mark.parametrize(
    ("law", "changes"),
    [
        ("user", {"User": ""}),
        ("user", {"User": "root"}),
        ("user", {"User": "0:0"}),
        ("variables", {"Env": ["PATH=/bin", "HTTPS_PROXY=secret"]}),
        ("labels", {"Labels": {}}),
        ("labels", {"Labels": None}),
        ("has a health check", {"Healthcheck": None}),
    ],
)
def test_a_bad_image(podman, law, changes):
    assert broken_laws(podman(inspected(**changes))) == {law, UNWRITTEN}


def test_a_command_that_fails_in_it(podman):
    failing = broken_laws(podman(inspected(), run="echo FAIL; exit 1"))
    assert {"pip check", "health check", "verify, read-only, no network, no capability"} < failing


def test_no_image(tmp_path, monkeypatch):
    fake(tmp_path, "podman", "exit 125")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EnvsError, match="row tf451: there is no image zo2:tf451"):
        images.report(images.Builder("podman"), ROWS["tf451"], say=lambda line: None)

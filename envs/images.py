"""Build the rows' images with whatever builder is there, and see whether they keep what they say.

Commands are made by pure functions; `Builder` runs them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import docker, environment, lockfile, matrix, pythons
from envs.errors import EnvsError
from verify.rows import Row

KNOWN = ("docker", "podman", "buildah")
WHEELHOUSE = matrix.ROOT / docker.FOLDER / "wheelhouse"
CALLER = 4321  # who runs a container when root checks it; no image knows this user

# as little as an image can be given; Triton and numba load what they compile, so /cache is not
# noexec, which docker makes of a tmpfs
CONFINED = (
    "--read-only",
    "--network=none",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--tmpfs=/cache:exec,mode=1777",
)

# variables that an image may carry; more would come from the machine that built it
_BASE = ("LANG", "GPG_KEY", "PYTHON_VERSION", "PYTHON_SHA256")
VARIABLES = frozenset(("PATH", *docker.VARIABLES, *_BASE))

_AS_ROOT = ("--network=none", "--user=0")

# what a build was given and no layer may keep; looked for as root, whom no folder is closed to
_SETTINGS = (
    r"find / -xdev -type f -size +0 \( -name pip.conf -o -name uv.toml -o -name .netrc "
    r"-o -name .pypirc -o -path '/build/*' -o -path '/wheelhouse/*' -o -path '/run/secrets/*' \)"
)

_TRAINING = """
import torch, transformers, zo2
size = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
config = transformers.OPTConfig(ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32,
                                **size)
model = transformers.OPTForCausalLM(config)
zo2.prepare(model, zo2.ZOConfig(lr=1e-3, eps=1e-3, seed=0))
words = torch.arange(2, 34)[None]
for _ in range(3):
    loss = model(input_ids=words, labels=words)
model.save_pretrained("/data/trained")
"""

# what an image says of itself, and how it says nothing
_NOTHING: Mapping[str, Any] = {"User": "", "Labels": {}, "Env": [], "Healthcheck": {}}

_SIZES = "du -sm /opt/zo2/lib/python3.*/site-packages/* /usr/lib /usr/local | sort -rn | head -n 12"


@dataclass(frozen=True)
class Builder:
    """A program that builds images: its name, which is its command."""

    name: str

    @property
    def runs(self) -> bool:
        """Whether it can run what it has built."""
        return self.name != "buildah"

    def build_command(self, row: Row, revision: str, options: Sequence[str] = ()) -> list[str]:
        """The command that builds the image of ``row``; ``options`` go to the builder."""
        # podman and buildah leave the health check out of their own format
        form = () if self.name == "docker" else ("--format=docker",)
        return [
            self.name, "build", *form, f"--build-arg=REVISION={revision}", *options,
            f"--file={docker.path(row)}", f"--tag={docker.tag(row)}", ".",
        ]  # fmt: skip

    def run_command(self, row: Row, options: Sequence[str], *command: str) -> list[str]:
        """The command that runs the row's image once."""
        return [self.name, "run", "--rm", *options, docker.tag(row), *command]


@dataclass(frozen=True)
class Finding:
    """One law of an image, whether it holds, and what was seen."""

    law: str
    holds: bool
    seen: str


def find(names: Sequence[str] = KNOWN) -> Builder:
    """The first builder that answers.

    Raises:
        EnvsError: none does; the sentence says what each of them lacks.
    """
    lacks = []
    for name in names:
        if not shutil.which(name):
            lacks.append(f"{name} is not installed")
        elif (done := _capture([name, "info"])).returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            lacks.append(f"{name} does not work here ({''.join(last)})")
        else:
            return Builder(name)
    raise EnvsError(f"images need docker, podman or buildah: {'; '.join(lacks)}")


def build(
    builder: Builder,
    row: Row,
    options: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> None:
    """Build the row's image; what the builder says goes to the terminal.

    Raises:
        EnvsError: it failed.
    """
    say(f"row {row.name}: building {docker.tag(row)} with {builder.name}")
    started = time.monotonic()
    command = builder.build_command(row, revision(), options)
    done = subprocess.run(command, cwd=matrix.ROOT, check=False)
    if done.returncode:
        raise EnvsError(f"row {row.name}: {builder.name} could not build {docker.path(row)}")
    say(f"row {row.name}: built in {time.monotonic() - started:.0f} s")


def report(builder: Builder, row: Row, say: Callable[[str], object] = print) -> bool:
    """Check the row's image and say what was found; returns whether every law holds.

    Raises:
        EnvsError: there is no such image.
    """
    if not builder.runs:
        say(f"row {row.name}: not checked, because {builder.name} does not run images")
        return True
    sound = True
    for finding in check(builder, row):
        sound &= finding.holds
        say(f"  {'holds' if finding.holds else 'FAILS'}  {finding.law}: {finding.seen}")
    say(sizes(builder, row))
    return sound


def collect_wheels(
    row: Row, folder: Path = WHEELHOUSE, say: Callable[[str], object] = print
) -> None:
    """Put the wheels of the image's lock into ``folder``, hashes enforced.

    Raises:
        EnvsError: the row's Python is not installed, or a wheel cannot be had.
    """
    python = pythons.choose(row.pythons[:1], f"the wheelhouse of row {row.name}")
    lock = environment.LOCKS / row.lock_name(python)
    done = _capture(
        [
            str(pythons.find(python)), "-m", "pip", "download", "--quiet", "--no-deps",
            "--require-hashes", "--only-binary=:all:", f"--dest={folder}", f"--requirement={lock}",
        ]
    )  # fmt: skip
    if done.returncode:
        raise EnvsError(f"row {row.name}: pip download failed:\n{done.stderr.strip()[-2000:]}")
    files = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in files) / 1e9
    say(f"row {row.name}: {len(files)} wheels, {size:.2f} GB, in {matrix.relative(folder)}")


def revision() -> str:
    """The commit that is built, with a plus if files were changed since."""
    said = _capture(["git", "describe", "--always", "--abbrev=40", "--dirty=+"])
    return said.stdout.strip() if said.returncode == 0 else "unknown"


def check(builder: Builder, row: Row) -> Iterator[Finding]:
    """Everything that an image promises, one after another."""
    config = _config(builder, row)
    yield _labels(row, config["Labels"])
    yield _variables(config["Env"])
    yield _user(config["User"])
    yield _health(config)

    def confined(*command: str) -> subprocess.CompletedProcess[str]:
        return _capture(builder.run_command(row, CONFINED, *command))

    yield _ran("verify, read-only, no network, no capability", confined())
    yield _ran("pip check", confined("pip", "check"))
    yield _ran("health check", confined("zo2-verify", "--quick", "--quiet", "--row", row.name))
    yield _kept(_capture(builder.run_command(row, _AS_ROOT, "sh", "-c", _SETTINGS)))
    yield _writes_as_the_caller(builder, row)


def sizes(builder: Builder, row: Row) -> str:
    """What takes the space: the image, and the largest of what is in it."""
    done = _capture([builder.name, "image", "inspect", "--format={{.Size}}", docker.tag(row)])
    lines = [f"{docker.tag(row)}: {int(done.stdout.strip() or 0) / 1e9:.2f} GB, largest in it:"]
    listed = _capture(builder.run_command(row, _AS_ROOT, "sh", "-c", _SIZES)).stdout
    for line in listed.splitlines():
        size, _, place = line.partition("\t")
        lines.append(f"  {int(size):6} MiB  {place}")
    return "\n".join(lines)


def _config(builder: Builder, row: Row) -> Mapping[str, Any]:
    """What the image says of itself."""
    done = _capture([builder.name, "image", "inspect", docker.tag(row)])
    if done.returncode:
        raise EnvsError(f"row {row.name}: there is no image {docker.tag(row)}")
    image = json.loads(done.stdout)[0]
    health = image["Config"].get("Healthcheck") or image.get("Healthcheck")  # docker, podman
    found = {**image["Config"], "Healthcheck": health or {}}
    return {key: found.get(key) or empty for key, empty in _NOTHING.items()}


def _labels(row: Row, found: Mapping[str, str]) -> Finding:
    place = environment.LOCKS / row.lock_name(row.pythons[0])
    lock = lockfile.read(place, matrix.relative(place))
    version = matrix.read_toml(matrix.ROOT / "pyproject.toml")["project"]["version"]
    wanted = docker.labels(row, lock, version)
    wrong = [
        key
        for key, value in wanted.items()
        if not (found.get(key) == value or (value == "${REVISION}" and found.get(key)))
    ]
    seen = f"{', '.join(wrong)} differ" if wrong else f"{len(wanted)} as the lock says"
    return Finding("labels", not wrong, seen)


def _variables(found: Sequence[str]) -> Finding:
    foreign = sorted({entry.partition("=")[0] for entry in found} - VARIABLES)
    seen = ", ".join(foreign) or f"{len(found)}, all known"
    return Finding("variables", not foreign, seen)


def _user(found: str) -> Finding:
    return Finding("user", bool(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", found)), found or "root")


def _health(config: Mapping[str, Any]) -> Finding:
    test = config["Healthcheck"].get("Test", [])
    return Finding("has a health check", "zo2-verify" in test, " ".join(test) or "none")


def _ran(law: str, done: subprocess.CompletedProcess[str]) -> Finding:
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    last = lines[-1].strip() if lines else "nothing printed"
    if not done.returncode:
        return Finding(law, True, last)
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-40:])
    return Finding(law, False, f"exit code {done.returncode}\n{tail}")


def _kept(search: subprocess.CompletedProcess[str]) -> Finding:
    law = "no settings of the machine that built it"
    if search.returncode:
        return _ran(law, search)
    found = search.stdout.split()
    return Finding(law, not found, " ".join(found) or "none")


def _writes_as_the_caller(builder: Builder, row: Row) -> Finding:
    """Train in the image and look whose the files are."""
    law = "training writes to a mounted folder as the caller"
    caller = os.getuid() or CALLER
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, caller, -1)
        options = [*CONFINED, f"--volume={folder}:/data", f"--user={caller}:{os.getgid()}"]
        done = _capture(builder.run_command(row, options, "python", "-c", _TRAINING))
        if done.returncode:
            return _ran(law, done)
        written = [path for path in folder.rglob("*") if path.is_file()]
        owners = {path.stat().st_uid for path in written}
        seen = f"{len(written)} files of user {', '.join(map(str, sorted(owners)))}"
        return Finding(law, owners == {caller}, seen)


def _capture(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=matrix.ROOT, capture_output=True, text=True, check=False)

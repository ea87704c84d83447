"""The programs that build and run images: which of them is here, and their commands."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs import archive, docker, matrix
from envs.archive import Image
from envs.errors import EnvsError
from verify.rows import Row

KNOWN = ("docker", "podman", "buildah")


@dataclass(frozen=True)
class Builder:
    """A program that builds images: its name, which is its command."""

    name: str

    @property
    def runs(self) -> bool:
        """Whether it can run what it has built."""
        return self.name != "buildah"

    def build_command(
        self, row: Row, base: str, revision: str, options: Sequence[str] = ()
    ) -> list[str]:
        """The command that builds the row's image on ``base``; ``options`` go to the builder."""
        # podman and buildah leave the health check out of their own format
        form = () if self.name == "docker" else ("--format=docker",)
        return [
            self.name, "build", *form, f"--build-arg=BASE={base}",
            f"--build-arg=REVISION={revision}", *options,
            f"--file={docker.path(row)}", f"--tag={docker.tag(row)}", ".",
        ]  # fmt: skip

    def run_command(self, row: Row, options: Sequence[str], *command: str) -> list[str]:
        """The command that runs the row's image once."""
        return [self.name, "run", "--rm", *options, docker.tag(row), *command]

    def save_command(self, row: Row) -> list[str]:
        """The command that writes the row's image to its output, in the form of ``docker save``."""
        if self.name == "buildah":
            return ["buildah", "push", "--quiet", docker.tag(row), "docker-archive:/dev/stdout"]
        return [self.name, "save", docker.tag(row)]


def find(names: Sequence[str] = KNOWN) -> Builder:
    """The first builder that answers.

    Raises:
        EnvsError: none does; the sentence says what each of them lacks.
    """
    lacks = []
    for name in names:
        if not shutil.which(name):
            lacks.append(f"{name} is not installed")
        elif (done := capture([name, "info"])).returncode:
            lacks.append(f"{name} does not work here ({_last(done)})")
        else:
            return Builder(name)
    raise EnvsError(f"images need docker, podman or buildah: {'; '.join(lacks)}")


def fetch_base(builder: Builder, base: str) -> None:
    """See to it that the image ``base`` is here.

    Raises:
        EnvsError: it is not, and cannot be pulled.
    """
    inspect = ["inspect", "--type=image"] if builder.name == "buildah" else ["image", "inspect"]
    if capture([builder.name, *inspect, base]).returncode == 0:
        return
    done = capture([builder.name, "pull", base])
    if done.returncode:
        raise EnvsError(
            f"{builder.name} cannot pull {base} ({_last(done)}); "
            "--base NAME builds on an image that is here"
        )


def build(
    builder: Builder,
    row: Row,
    base: str,
    options: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> None:
    """Build the row's image; what the builder says goes to the terminal.

    Raises:
        EnvsError: it failed.
    """
    say(f"row {row.name}: building {docker.tag(row)} with {builder.name} on {base}")
    started = time.monotonic()
    command = builder.build_command(row, base, revision(), options)
    done = subprocess.run(command, cwd=matrix.ROOT, check=False)
    if done.returncode:
        raise EnvsError(f"row {row.name}: {builder.name} could not build {docker.path(row)}")
    say(f"row {row.name}: built in {time.monotonic() - started:.0f} s")


def load(builder: Builder, row: Row) -> Image:
    """The row's image as its archive tells it.

    Raises:
        EnvsError: there is none, or it cannot be read.
    """
    command = builder.save_command(row)
    with (
        tempfile.TemporaryFile() as errors,  # a pipe that nobody empties would hold the builder up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as saving,
    ):
        assert saving.stdout is not None
        try:
            return archive.read(saving.stdout)
        except EnvsError as error:
            saving.stdout.close()  # what is left of the archive is not waited for
            saving.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise EnvsError(
                f"row {row.name}: {builder.name} cannot save {docker.tag(row)}: "
                f"{''.join(said) or error}"
            ) from None


def revision() -> str:
    """The commit that is built, with a plus if files were changed since."""
    said = capture(["git", "describe", "--always", "--abbrev=40", "--dirty=+"])
    return said.stdout.strip() if said.returncode == 0 else "unknown"


def capture(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root and keep what it says."""
    return subprocess.run(command, cwd=matrix.ROOT, capture_output=True, text=True, check=False)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a command said."""
    said = done.stderr.strip() or done.stdout.strip()
    return "".join(said.splitlines()[-1:])

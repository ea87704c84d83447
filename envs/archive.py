"""An image as its archive tells it: the configuration, and every file of every layer.

docker, podman and buildah all write the same form of archive, tens of gigabytes for a few images.
So it is read from a pipe as it streams by, and nothing of it is kept but names and digests.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from envs.errors import EnvsError

_CHUNK = 2**20
_SMALL = 2**24  # what is no layer is JSON, and short
_LINE = 128  # bytes of a line by which it is told whether key or certificate begins there
_PEM = re.compile(rb"^-----BEGIN [A-Z ]*(CERTIFICATE|PRIVATE KEY)-----$", re.MULTILINE)
_REMOVED = ".wh."  # how a layer says that a file of an earlier one is gone
_EMPTIED = ".wh..wh..opq"


@dataclass(frozen=True)
class File:
    """What a layer says of one path; timestamps are left out.

    Attributes:
        path: from the root, without a slash before it.
        kind: ``"file"``, ``"folder"``, ``"link"`` (symbolic), ``"hard-link"`` or ``"device"``.
        mode: permissions.
        owner: numbers of user and group, such as ``"0:0"``.
        size: bytes.
        content: SHA-256 of a file, target of a link.
        pem: whether it holds certificates or a private key.
    """

    path: str
    kind: str
    mode: int
    owner: str
    size: int = 0
    content: str = ""
    pem: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.kind} {self.mode:04o} {self.owner} {self.content or '-'} {self.path}"


@dataclass(frozen=True)
class Layer:
    """What one step of a build wrote: the step, and the files in the order of the archive."""

    step: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes in its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Image:
    """An image: its configuration (of the OCI specification, ``config``), steps and layers."""

    config: Mapping[str, Any]
    steps: tuple[str, ...]
    layers: tuple[Layer, ...]

    def files(self) -> dict[str, File]:
        """What a container sees: every path with the last word that a layer had on it."""
        seen: dict[str, File] = {}
        for layer in self.layers:
            removed = [file for file in layer.files if file.name.startswith(_REMOVED)]
            for file in removed:
                _remove(seen, file)
            seen.update({file.path: file for file in layer.files if file not in removed})
        return dict(sorted(seen.items()))


def read(stream: IO[bytes]) -> Image:
    """Read what ``docker save`` writes.

    Raises:
        EnvsError: it is not such an archive.
    """
    small: dict[str, bytes] = {}
    layers: dict[str, tuple[File, ...]] = {}
    links: dict[str, str] = {}  # docker stores equal layers once
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive:
            for member in archive:
                if member.issym():
                    target = posixpath.join(posixpath.dirname(member.name), member.linkname)
                    links[member.name] = posixpath.normpath(target)
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                if _is_layer(content.peek(512)):  # type: ignore[attr-defined]
                    layers[member.name] = tuple(_files(content))
                elif member.size < _SMALL:
                    small[member.name] = content.read()
        (manifest,) = json.loads(small["manifest.json"])
        config = json.loads(small[manifest["Config"]])
        contents = [layers[links.get(name, name)] for name in manifest["Layers"]]
    except (tarfile.TarError, gzip.BadGzipFile, KeyError, ValueError) as error:
        raise EnvsError(f"the image's archive cannot be read: {error!r}") from error
    history = config.get("history", [])
    wrote = [step.get("created_by", "") for step in history if not step.get("empty_layer")]
    unknown = [""] * (len(contents) - len(wrote))  # an imported base has no history
    return Image(
        config=config["config"],
        steps=tuple(step.get("created_by", "") for step in history),
        layers=tuple(map(Layer, [*unknown, *wrote], contents)),
    )


def listing(image: Image) -> str:
    """Every file of an image, one a line in the order of paths, without timestamps."""
    return "".join(f"{file}\n" for file in image.files().values())


def differences(one: str, other: str) -> list[str]:
    """The paths on which two listings disagree."""
    lines = {*one.splitlines()} ^ {*other.splitlines()}
    return sorted({line.split(" ", 4)[4] for line in lines})


def _is_layer(head: bytes) -> bool:
    """Whether a file that begins so is a tar file, perhaps compressed or without any member."""
    empty = bool(head) and not head.strip(b"\0")
    return head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b" or empty


def _files(layer: IO[bytes]) -> Iterator[File]:
    with tarfile.open(fileobj=layer, mode="r|*", bufsize=_CHUNK) as archive:
        for member in archive:
            yield _file(member, archive.extractfile(member) if member.isreg() else None)


def _file(member: tarfile.TarInfo, content: IO[bytes] | None) -> File:
    path = member.name.removeprefix("./").rstrip("/")
    owner = f"{member.uid}:{member.gid}"
    if content is not None:
        digest, pem, line = hashlib.sha256(), False, b""
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            text = line + chunk
            pem = pem or bool(_PEM.search(text))
            line = text[text.rfind(b"\n") + 1 :][:_LINE]  # which the next chunk may go on with
        return File(path, "file", member.mode, owner, member.size, digest.hexdigest(), pem)
    if member.issym():
        return File(path, "link", member.mode, owner, content=member.linkname)
    if member.islnk():
        return File(path, "hard-link", member.mode, owner, content=member.linkname)
    return File(path, "folder" if member.isdir() else "device", member.mode, owner)


def _remove(seen: dict[str, File], mark: File) -> None:
    """Take away what a layer marks as gone: a path and all below it, or all below a folder."""
    folder = mark.path[: -len(mark.name)]
    gone = folder + mark.name.removeprefix(_REMOVED)
    if mark.name != _EMPTIED:
        seen.pop(gone, None)
    below = folder if mark.name == _EMPTIED else f"{gone}/"
    for path in [path for path in seen if path.startswith(below)]:
        del seen[path]

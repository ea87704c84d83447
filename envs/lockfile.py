"""One lock as text: parse it, write it in one form, and find what a hand has changed.

A lock is a requirements file that pip and uv install with ``--require-hashes``. Below each entry
stands its seal, a digest of the entry, and in the header one over all seals, so that whoever
changes a version, a hash or the list of packages is told the line, without a network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from envs.errors import EnvsError

_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?P<rest>[^\\]*)")
_HASH = re.compile(r"--hash=sha256:(?P<digest>[0-9a-f]{64})")
_LEAKS = ("file:", "--index-url", "--extra-index-url", "--find-links", "://", "-e ", " @ ")


@dataclass(frozen=True)
class Entry:
    """One package of a lock.

    Attributes:
        name: canonical name.
        version: exact version, never a local one.
        marker: environment marker with its semicolon, or nothing.
        hashes: sha256 of every file of the release, sorted.
        via: who asked for it.
        line: where it stands in the file, from 1; 0 before it was written.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    via: tuple[str, ...]
    line: int = 0

    @property
    def seal(self) -> str:
        """Twelve hexadecimal digits that change with anything that is installed."""
        text = "\n".join([f"{self.name}=={self.version}{self.marker}", *self.hashes])
        return _digest(text)[:12]


@dataclass(frozen=True)
class Lock:
    """All packages of one row for one version of Python.

    Attributes:
        row: name of the row.
        python: such as ``"3.11"``.
        written_by: the tools and their versions.
        inputs: digest of the requirements that it answers, see `digest_inputs`.
        entries: the packages, by name.
    """

    row: str
    python: str
    written_by: str
    inputs: str
    entries: tuple[Entry, ...]

    @property
    def versions(self) -> dict[str, str]:
        """Version of every package."""
        return {entry.name: entry.version for entry in self.entries}

    @property
    def seal(self) -> str:
        """Digest over the seals of all entries."""
        return _digest(" ".join(entry.seal for entry in self.entries))

    def text(self) -> str:
        """The file, always the same for the same lock."""
        lines = [
            f"# Row {self.row}, Python {self.python}, Linux x86_64.",
            f"# Written by `nox -s lock` ({self.written_by}); to change it, change",
            "# envs/matrix.toml and run that again.",
            f"# inputs: {self.inputs}",
            f"# seal: {self.seal}",
        ]
        for entry in self.entries:
            lines.append(
                " \\\n    ".join([_head(entry), *map("--hash=sha256:{}".format, entry.hashes)])
            )
            lines.append(f"    # via {', '.join(entry.via)}")
            lines.append(f"    # seal {entry.seal}")
        return "\n".join(lines) + "\n"


def digest_inputs(requirements: Sequence[str]) -> str:
    """Digest of the requirements that a lock answers, whatever their order."""
    return "sha256:" + _digest("\n".join(sorted(requirements)))


def read(path: Path, place: str) -> Lock:
    """The lock at ``path``.

    Args:
        path: the file.
        place: how messages call it.

    Raises:
        EnvsError: it is missing, is not a lock, or was changed since it was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EnvsError(f"{place}: there is no such lock; `nox -s lock` writes it") from None
    title = re.match(r"# Row (\S+), Python (\S+), .*\n# Written by `nox -s lock` \((.*)\)", text)
    inputs = re.search(r"^# inputs: (\S+)$", text, re.MULTILINE)
    seal = re.search(r"^# seal: (\S+)$", text, re.MULTILINE)
    if not (title and inputs and seal):
        raise EnvsError(f"{place}:1: the header was changed; `nox -s lock` writes the lock anew")
    lock = Lock(title[1], title[2], title[3], inputs[1], parse(text, place))
    written = dict(re.findall(r"^(\S+?)==(?:.*\n)+?    # seal (\S+)$", text, re.MULTILINE))
    for entry in lock.entries:
        if written.get(entry.name) != entry.seal:
            raise EnvsError(
                f"{place}:{entry.line}: the entry of {entry.name} was changed by hand; "
                f"`nox -s lock -- {lock.row}` writes it anew"
            )
    if seal[1] != lock.seal:
        raise EnvsError(
            f"{place}:1: packages were added to the lock or taken from it by hand; "
            f"`nox -s lock -- {lock.row}` writes it anew"
        )
    return lock


def parse(text: str, place: str) -> tuple[Entry, ...]:
    """The entries of a requirements file as pip-tools writes it, sorted by name.

    Raises:
        EnvsError: a line is no part of an entry with hashes, or belongs to the machine that wrote
            it: an index address, a path, a local version.
    """
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        at = f"{place}:{number}"
        content = line.strip().removesuffix("\\").rstrip()
        if not content or line.startswith("#"):
            continue
        if content.startswith("#"):
            _add_comment(entries, content)
            continue
        for leak in _LEAKS:
            if leak in content:
                raise EnvsError(f"{at}: {leak.strip()!r} names a place; a lock holds only versions")
        if content.startswith("--hash"):
            digest = _HASH.fullmatch(content)
            if not digest or not entries:
                raise EnvsError(f"{at}: not the sha256 of a file: {content}")
            last = entries[-1]
            entries[-1] = _replace(last, hashes=(*last.hashes, digest["digest"]))
            continue
        match = _ENTRY.fullmatch(content)
        if not match:
            raise EnvsError(f"{at}: not a pinned requirement: {content}")
        if _version(match["version"], at).local:
            raise EnvsError(f"{at}: {content} is a local build, which no index has")
        name = canonicalize_name(match["name"])
        if any(entry.name == name for entry in entries):
            raise EnvsError(f"{at}: {name} is there twice")
        entries.append(Entry(name, match["version"], match["rest"].rstrip(), (), (), number))
    for entry in entries:
        if not entry.hashes:
            raise EnvsError(f"{place}:{entry.line}: {entry.name} has no hash")
    return tuple(
        _replace(entry, hashes=tuple(sorted(entry.hashes)))
        for entry in sorted(entries, key=lambda entry: entry.name)
    )


def _version(text: str, at: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise EnvsError(f"{at}: {text} is not a version") from None


def _add_comment(entries: list[Entry], content: str) -> None:
    """Collect who asked for the last entry."""
    text = content.lstrip("#").strip().removeprefix("via").strip()
    if entries and text and not text.startswith("seal "):
        entries[-1] = _replace(entries[-1], via=(*entries[-1].via, *text.split(", ")))


def _head(entry: Entry) -> str:
    return f"{entry.name}=={entry.version}{entry.marker}"


def _replace(entry: Entry, **changes: tuple[str, ...]) -> Entry:
    return Entry(**{**vars(entry), **changes})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

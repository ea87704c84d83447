"""Reading what is asked for: requirements files, a pyproject, names, an environment.

Every requirement keeps the place it was read from, so that a conflict can be shown and a change
written back there.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from verify.explain.errors import ExplainError


@dataclass(frozen=True)
class Origin:
    """Where a requirement was read.

    Attributes:
        file: as the user named it, ``-`` for standard input; empty if it was in neither.
        line: number of its first line, from 1; 0 outside files.
        label: what to call the place if it is not a file.
    """

    file: str = ""
    line: int = 0
    label: str = ""

    def __str__(self) -> str:
        file = "standard input" if self.file == "-" else self.file
        return f"{file}:{self.line}" if self.file else self.label


@dataclass(frozen=True)
class Requirement:
    """One requirement, in a form that uv reads.

    Attributes:
        text: what is asked for, such as ``"torch==2.4.0"``.
        origin: where.
        constraint: it limits a version if the package is needed, but does not ask for it.
        keep: it must not be moved.
        moved: ``"newer"`` or ``"older"`` if this is a relaxed form of a requirement.
        was: the pin of which this is an older form.
        hashes: whether the line carries hashes.
        label: what to call it if it has no name (a path, an address).
    """

    text: str
    origin: Origin = Origin()
    constraint: bool = False
    keep: bool = False
    moved: str = ""
    was: str = ""
    hashes: bool = False
    label: str = ""

    @cached_property
    def parsed(self) -> Parsed | None:
        """The parsed form; ``None`` for paths and addresses without a name."""
        return None if self.label else Parsed(self.text)

    @property
    def name(self) -> str:
        """The canonical name of its package, or the label."""
        return canonicalize_name(self.parsed.name) if self.parsed else self.label

    @property
    def specifier(self) -> SpecifierSet:
        """Which versions it allows."""
        return self.parsed.specifier if self.parsed else SpecifierSet()

    @property
    def pinned(self) -> Version | None:
        """The one version that it allows, if it is a pin."""
        clauses = list(self.specifier)
        if len(clauses) != 1 or clauses[0].operator not in ("==", "==="):
            return None
        try:
            return Version(clauses[0].version)
        except InvalidVersion:
            return None

    @property
    def movable(self) -> bool:
        """Whether other versions of it may be proposed."""
        return bool(not self.keep and self.specifier and self.parsed and not self.parsed.url)

    def with_specifier(self, specifier: str) -> Requirement:
        """The same requirement with other versions; its extras and marker stay as written."""
        return replace(self, text=replace_specifier(self.text, specifier))

    def __str__(self) -> str:
        return self.label or self.text


@dataclass(frozen=True)
class Request:
    """Everything that was asked for.

    Attributes:
        requirements: in the order in which they were read.
        options: arguments for uv that the files contain (indexes and the like).
        prerelease: whether a file asks for pre-releases.
        files: the files that were read.
    """

    requirements: tuple[Requirement, ...] = ()
    options: tuple[str, ...] = ()
    prerelease: bool = False
    files: tuple[Path, ...] = ()

    def __add__(self, other: Request) -> Request:
        seen = set(self.requirements)
        fresh = tuple(r for r in other.requirements if r not in seen)
        return Request(
            self.requirements + fresh,
            self.options + other.options,
            self.prerelease or other.prerelease,
            self.files + other.files,
        )


# ---- one requirement ------------------------------------------------------------------------

_NAME_AND_EXTRAS = r"\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\])?"


def replace_specifier(text: str, specifier: str) -> str:
    """``text`` with another version specifier, all else as it was written."""
    parts = rf"(?P<head>{_NAME_AND_EXTRAS})(?P<specifier>[^;#]*?)(?P<tail>\s*(?:[;#].*)?)$"
    match = re.match(parts, text, re.DOTALL)
    if match is None:  # pragma: no cover - every parsed requirement begins with a name
        raise ValueError(text)
    gap = re.match(r"\s*", match["specifier"])
    assert gap is not None
    return match["head"] + gap[0] + specifier + match["tail"]


def parse(text: str, origin: Origin) -> Requirement:
    """Read one requirement.

    Raises:
        ExplainError: it is none; the sentence says where, and guesses what was meant.
    """
    bare, hashes = _without_line_options(text)
    opaque = _opaque(bare, origin)
    if opaque is not None:
        return replace(opaque, hashes=hashes)
    try:
        Parsed(bare)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0].rstrip(":. ")
        raise ExplainError(
            f"{origin}: {bare!r} is not a requirement: {reason[:1].lower()}{reason[1:]}."
            + _meant(bare)
        ) from None
    return Requirement(bare, origin, hashes=hashes)


def _meant(text: str) -> str:
    """A guess at the requirement behind ``text``, as a sentence, or nothing."""
    single = re.fullmatch(rf"({_NAME_AND_EXTRAS})\s*=\s*([^\s=]+)(?:=\S*)?\s*(;.*)?", text)
    apart = re.fullmatch(rf"({_NAME_AND_EXTRAS})\s+v?(\d[\w.+!]*)", text)
    found = single or apart
    return f" Did you mean {found[1].strip()}=={found[2]}?" if found else ""


def _without_line_options(text: str) -> tuple[str, bool]:
    """The requirement before options such as ``--hash``, and whether there are hashes."""
    match = re.search(r"(?:^|\s)--(hash|config-settings?|global-option|install-option)\b", text)
    return (text[: match.start()].strip(), "--hash" in text) if match else (text.strip(), False)


def _opaque(text: str, origin: Origin) -> Requirement | None:
    """A path or an address without a name; uv reads what is there."""
    editable = re.match(r"(?:-e|--editable)(?:\s+|=)(.+)", text)
    target = editable[1].strip() if editable else text
    address = re.match(r"(?:[a-z+]+)://|file:", target)
    path = re.match(r"\.{0,2}[/\\]|\.{1,2}$|[A-Za-z]:[/\\]", target) or re.search(
        r"\.(whl|zip|tar\.gz|tar\.bz2)$", target
    )
    if not (editable or address or (path and " @ " not in target)):
        return None
    if not address:
        bare, _, extras = target.partition("[")
        folder = Path(origin.file).parent if origin.file else Path()
        target = str((folder / bare).resolve()) + (f"[{extras}" if extras else "")
    return Requirement(f"-e {target}" if editable else target, origin, label=text)


# ---- files ----------------------------------------------------------------------------------

_IGNORED = ("--prefer-binary", "--require-hashes", "--use-feature", "--no-build-isolation")
_WITH_VALUE = {
    "-i": "--default-index",
    "--index-url": "--default-index",
    "--pypi-url": "--default-index",
    "--extra-index-url": "--index",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--trusted-host": "--allow-insecure-host",
}


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode(data: bytes, name: str) -> tuple[str, str]:
    """The text of a file and its encoding: PowerShell's ``>`` writes UTF-16.

    Raises:
        ExplainError: it is not text.
    """
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ExplainError(
            f"{name}: not a text file in UTF-8 (byte {error.start}); save it as UTF-8."
        ) from None
    if "\0" in text:
        raise ExplainError(f"{name}: not a text file; name a requirements file or a pyproject.")
    return text, encoding


def read_file(path: str, extras: Sequence[str] = (), constraint: bool = False) -> Request:
    """Read a requirements file, with what it includes, or a ``pyproject.toml``.

    Raises:
        ExplainError: a file cannot be read, or a line of it means nothing.
    """
    return _Reader(tuple(extras)).read(path, constraint)


@dataclass
class _Reader:
    """Follows ``-r`` and ``-c``; each file is read once in each of the two roles."""

    extras: tuple[str, ...]
    seen: set[tuple[Path, bool]] = field(default_factory=set)

    def read(self, name: str, constraint: bool, included: str = "") -> Request:
        path = Path(name)
        if (path.resolve(), constraint) in self.seen:
            return Request()
        self.seen.add((path.resolve(), constraint))
        try:
            data = sys.stdin.buffer.read() if name == "-" else path.read_bytes()
        except OSError as error:
            by = f"{included}: " if included else ""
            reason = "is a folder" if path.is_dir() else (error.strerror or "failed").lower()
            raise ExplainError(f"{by}{name} cannot be read: {reason}.") from None
        text, _ = decode(data, name)
        if path.suffix == ".toml":
            found = _pyproject(text, name, self.extras)
        elif path.suffix in (".yml", ".yaml", ".py", ".cfg", ".lock"):
            raise ExplainError(
                f"{name} is not a requirements file. Give a requirements file or a pyproject.toml."
            )
        else:
            found = self._lines(text, name, constraint)
        return found + Request(files=(path,))

    def _lines(self, text: str, name: str, constraint: bool) -> Request:
        found = Request()
        for number, line in logical_lines(text):
            found += self._line(line, Origin(name, number), constraint)
        return found

    def _line(self, line: str, origin: Origin, constraint: bool) -> Request:
        line = re.sub(r"\$\{([A-Z0-9_]+)\}", lambda m: os.environ.get(m[1], m[0]), line)
        if not line.startswith("-") or re.match(r"(-e\b|--editable\b)", line):
            return Request((replace(parse(line, origin), constraint=constraint),))
        try:
            words = shlex.split(line.replace("\\", "\\\\"))
        except ValueError as error:
            raise ExplainError(f"{origin}: {line!r} is unreadable: {error}.") from None
        return self._option(words, line, origin, constraint)

    def _option(self, words: list[str], line: str, origin: Origin, constraint: bool) -> Request:
        option, equals, value = words[0].partition("=")
        short = re.match(r"(-[rcif])(.+)", words[0])
        if short:
            option, equals, value = short[1], "=", short[2]
        values = [value] if equals else words[1:]
        folder = Path(origin.file).parent
        if option in ("-r", "--requirement", "-c", "--constraint") and len(values) == 1:
            if "://" in values[0]:
                raise ExplainError(
                    f"{origin}: {values[0]} is an address; download it and name the file."
                )
            is_constraint = constraint or option in ("-c", "--constraint")
            name = os.path.normpath(folder / values[0])
            return self.read(name, is_constraint, str(origin))
        if option in _WITH_VALUE and len(values) == 1:
            local = folder / values[0]
            if option in ("-f", "--find-links") and local.exists():
                values = [str(local.resolve())]
            return Request(options=(_WITH_VALUE[option], values[0]))
        if option == "--no-index":
            return Request(options=("--no-index",))
        if option == "--pre":
            return Request(prerelease=True)
        if option in ("--no-binary", "--only-binary") and len(values) == 1:
            # everything is asked for in wheels; what may be built is said by name
            names = [n for n in values[0].split(",") if not n.startswith(":")]
            built = names if option == "--no-binary" else []
            return Request(options=tuple(w for n in built for w in ("--no-binary", n)))
        if option in _IGNORED:
            return Request()
        raise ExplainError(f"{origin}: {line!r} is not an option of requirements files.")


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, content) without comments and blank lines; backslashes join lines."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1]
            continue
        content = re.sub(r"(^|\s)#.*$", "", joined + line).strip()
        if content:
            yield first, content
        joined, first = "", 0
    if joined.strip():
        yield first, joined.strip()


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ExplainError(
            "Reading a pyproject needs Python 3.11 or the package tomli: pip install tomli"
        ) from None
    return tomli


def _pyproject(text: str, name: str, extras: Sequence[str]) -> Request:
    toml = _toml()
    try:
        content = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ExplainError(f"{name}: not valid TOML: {error}.") from None
    project = content.get("project")
    if project is None:
        hint = " Poetry's own tables are not read." if "poetry" in content.get("tool", {}) else ""
        raise ExplainError(f"{name} has no [project] table, so it asks for nothing.{hint}")
    groups = [project.get("dependencies", [])]
    optional = {
        canonicalize_name(k): v for k, v in project.get("optional-dependencies", {}).items()
    }
    for extra in extras:
        if canonicalize_name(extra) not in optional:
            known = ", ".join(optional) or "none"
            raise ExplainError(f"{name} has no extra {extra!r}. It has: {known}.")
        groups.append(optional[canonicalize_name(extra)])
    found = Request()
    lines = text.splitlines()
    for group in groups:
        for entry in group:
            if not isinstance(entry, str):
                raise ExplainError(f"{name}: {entry!r} is not a requirement.")
            line = next((n for n, content in enumerate(lines, 1) if _quoted(entry, content)), 0)
            found += Request((parse(entry, Origin(name, line)),))
    return found


def _quoted(entry: str, line: str) -> bool:
    return f'"{entry}"' in line or f"'{entry}'" in line or entry.replace('"', '\\"') in line


# ---- other sources --------------------------------------------------------------------------


def from_names(names: Sequence[str]) -> Request:
    """Requirements that were given as arguments."""
    place = Origin(label="command line")
    return Request(tuple(parse(name, place) for name in names))


def installed() -> Request:
    """One pin for each distribution of the running environment.

    A distribution that came from a folder or an address is on no index: what it needs is asked
    for in its stead. Local versions such as ``2.4.0+cu121`` are on no public index either, and
    are asked for as what they are builds of.
    """
    found: dict[str, Requirement] = {}
    place = Origin(label="installed")
    local: list[metadata.Distribution] = []
    for dist in metadata.distributions():
        name = canonicalize_name(dist.metadata["Name"] or "")
        if not name or name in found:  # a second copy on the path is never imported
            continue
        if dist.read_text("direct_url.json"):
            local.append(dist)
            continue
        try:
            version = Version(dist.version).public
        except InvalidVersion:
            raise ExplainError(
                f"The installed {name} says its version is {dist.version!r}, which is none. "
                f"Reinstall it: pip install --force-reinstall {name}"
            ) from None
        found[name] = Requirement(f"{name}=={version}", place)
    needs = [
        Requirement(need, Origin(label=f"needed by {dist.metadata['Name']} {dist.version}"))
        for dist in local
        for need in dist.requires or []
        if "extra ==" not in need
    ]
    ordered = [found[name] for name in sorted(found)]
    return Request(tuple(ordered + needs))

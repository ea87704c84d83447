"""Reading what is asked for: requirements files, a pyproject, names.

Every requirement keeps the place it was read from, so that a conflict can be shown and a change
written back there.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from verify.explain.errors import ExplainError
from verify.explain.pyproject import read_project


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
        shown: how it reads for people, if not like its text.
    """

    text: str
    origin: Origin = Origin()
    constraint: bool = False
    keep: bool = False
    moved: str = ""
    was: str = ""
    hashes: bool = False
    label: str = ""
    shown: str = ""

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
        return replace(self, text=replace_specifier(self.text, specifier), shown="")

    def __str__(self) -> str:
        return self.shown or self.label or self.text


@dataclass(frozen=True)
class Request:
    """Everything that was asked for.

    Attributes:
        requirements: in the order in which they were read.
        options: arguments for uv that the files contain (indexes and the like).
        prerelease: whether a file asks for pre-releases.
        files: the files that were read.
        pythons: the versions of Python that projects are for, with the place that says so.
    """

    requirements: tuple[Requirement, ...] = ()
    options: tuple[str, ...] = ()
    prerelease: bool = False
    files: tuple[Path, ...] = ()
    pythons: tuple[tuple[Origin, SpecifierSet], ...] = ()

    def __add__(self, other: Request) -> Request:
        return joined([self, other])


def joined(requests: Iterable[Request]) -> Request:
    """All that several requests ask for, each requirement once."""
    parts = list(requests)
    return Request(
        tuple(dict.fromkeys(r for part in parts for r in part.requirements)),
        tuple(option for part in parts for option in part.options),
        any(part.prerelease for part in parts),
        tuple(file for part in parts for file in part.files),
        tuple(python for part in parts for python in part.pythons),
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


def parse(text: str, origin: Origin, expand: bool = False) -> Requirement:
    """Read one requirement.

    Args:
        text: as it is written.
        origin: where.
        expand: whether ``${NAME}`` in it is the variable of that name. Their values are often
            secret, so the requirement is shown as it is written.

    Raises:
        ExplainError: it is none; the sentence says where, and guesses what was meant.
    """
    bare, hashes = _without_line_options(text)
    value = expanded(bare) if expand else bare
    opaque = _opaque(value)
    if opaque is not None:
        return Requirement(opaque, origin, hashes=hashes, label=bare)
    try:
        Parsed(value)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0].rstrip(":. ")
        raise ExplainError(
            f"{origin}: {bare!r} is not a requirement: {reason[:1].lower()}{reason[1:]}."
            + _meant(bare)
        ) from None
    return Requirement(value, origin, hashes=hashes, shown=bare if value != bare else "")


def expanded(text: str) -> str:
    """``text`` with the values of environment variables, which are written ``${NAME}``."""
    return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda m: os.environ.get(m[1], m[0]), text)


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


def _opaque(text: str) -> str | None:
    """A path or an address without a name, in a form that uv reads wherever it runs."""
    editable = re.match(r"(?:-e|--editable)(?:\s+|=)(.+)", text)
    target = editable[1].strip() if editable else text
    address = re.match(r"(?:[a-z+]+)://|file:", target)
    path = re.match(r"\.{0,2}[/\\]|\.{1,2}$|[A-Za-z]:[/\\]", target) or re.search(
        r"\.(whl|zip|tar\.gz|tar\.bz2)$", target
    )
    if not (editable or address or (path and " @ " not in target)):
        return None
    if not address:  # as for pip, below the working directory, whichever file it stands in
        bare, _, extras = target.partition("[")
        target = str(Path(bare).resolve()) + (f"[{extras}" if extras else "")
    return f"-e {target}" if editable else target


# ---- files ----------------------------------------------------------------------------------

_IGNORED = ("--prefer-binary", "--require-hashes", "--no-build-isolation", "--use-feature")
_PASSED_ON = {
    "-i": "--default-index",
    "--index-url": "--default-index",
    "--pypi-url": "--default-index",
    "--extra-index-url": "--index",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--trusted-host": "--allow-insecure-host",
}
_INCLUDES = ("-r", "--requirement", "-c", "--constraint")
_WITH_VALUE = (*_PASSED_ON, *_INCLUDES, "--no-binary", "--only-binary", "--use-feature")


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode(data: bytes, name: str) -> tuple[str, str]:
    """The text of a file and its encoding.

    PowerShell's ``>`` writes UTF-16; a comment at the top may name another, as in Python.

    Raises:
        ExplainError: it is not text.
    """
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), "")
    encoding = encoding or _named_encoding(data, name) or "utf-8"
    try:
        text = data.decode(encoding)
    except LookupError:
        raise ExplainError(
            f"{name}: there is no encoding {encoding!r}; save the file as UTF-8."
        ) from None
    except UnicodeDecodeError as error:
        raise ExplainError(
            f"{name}: not a text file in {encoding.upper()} (byte {error.start}); save it as UTF-8."
        ) from None
    if "\0" in text:
        raise ExplainError(f"{name}: not a text file; name a requirements file or a pyproject.")
    return text, encoding


def _named_encoding(data: bytes, name: str) -> str:
    """The encoding that one of the first two lines names in a comment, if one does."""
    for line in [] if name.endswith(".toml") else data.splitlines()[:2]:
        found = re.match(rb"\s*#.*coding[:=]\s*([\w.-]+)", line)
        if found:
            return found[1].decode("ascii", "replace")
    return ""


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
        return joined(
            self._line(line, Origin(name, number), constraint)
            for number, line in logical_lines(text)
        )

    def _line(self, line: str, origin: Origin, constraint: bool) -> Request:
        if not line.startswith("-") or re.match(r"(-e\b|--editable\b)", line):
            return Request((replace(parse(line, origin, True), constraint=constraint),))
        try:
            words = shlex.split(expanded(line).replace("\\", "\\\\"))
        except ValueError as error:
            raise ExplainError(f"{origin}: {line!r} is unreadable: {error}.") from None
        return joined(
            self._option(option, value, line, origin, constraint)
            for option, value in _options(words)
        )

    def _option(
        self, option: str, value: str, line: str, origin: Origin, constraint: bool
    ) -> Request:
        if option in _WITH_VALUE and not value:
            raise ExplainError(f"{origin}: {line!r} lacks the value of {option}.")
        folder = Path(origin.file).parent
        if option in _INCLUDES:
            if "://" in value:
                raise ExplainError(
                    f"{origin}: {line!r} names an address; download it and name the file."
                )
            is_constraint = constraint or option in ("-c", "--constraint")
            return self.read(os.path.normpath(folder / value), is_constraint, str(origin))
        if option in _PASSED_ON:
            local = folder / value
            if option in ("-f", "--find-links") and local.exists():
                value = str(local.resolve())
            return Request(options=(_PASSED_ON[option], value))
        if option == "--no-index":
            return Request(options=("--no-index",))
        if option == "--pre":
            return Request(prerelease=True)
        if option in ("--no-binary", "--only-binary"):
            # everything is asked for in wheels; what may be built is said by name
            names = [n for n in value.split(",") if not n.startswith(":")]
            built = names if option == "--no-binary" else []
            return Request(options=tuple(w for n in built for w in ("--no-binary", n)))
        if option in _IGNORED:
            return Request()
        raise ExplainError(f"{origin}: {line!r} is not an option of requirements files.")


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of each option on a line; what lacks a value has an empty one."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        short = re.match(r"(-[rcif])=?(.+)", word)
        option, _, value = word.partition("=") if not short else (short[1], "", short[2])
        if option in _WITH_VALUE and not value and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        yield option, value


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


def _pyproject(text: str, name: str, extras: Sequence[str]) -> Request:
    project = read_project(text, name, extras)
    found = tuple(parse(entry, Origin(name, line)) for entry, line in project.entries)
    pythons = ((Origin(name, project.python_line), project.python),)
    return joined([Request(found, pythons=pythons)])


# ---- other sources --------------------------------------------------------------------------


def from_names(names: Sequence[str]) -> Request:
    """Requirements that were given as arguments."""
    place = Origin(label="command line")
    return Request(tuple(parse(name, place) for name in names))

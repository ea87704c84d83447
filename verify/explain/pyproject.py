"""What a ``pyproject.toml`` asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from verify.explain.errors import ExplainError


@dataclass(frozen=True)
class Project:
    """What a project asks for.

    Attributes:
        entries: its dependencies and those of the chosen extras, as (text, line); the line is 0
            where the text is not written in one piece.
        python: the versions of Python it is for.
        python_line: where it says so.
    """

    entries: tuple[tuple[str, int], ...]
    python: SpecifierSet
    python_line: int = 0


def read_project(text: str, name: str, extras: Sequence[str]) -> Project:
    """Read the ``[project]`` table.

    Args:
        text: the file's text.
        name: what to call the file.
        extras: the extras that are asked for.

    Raises:
        ExplainError: it does not say what the project asks for, or is malformed.
    """
    project = _table(text, name)
    dynamic = project.get("dynamic", [])
    for field in ("dependencies", "optional-dependencies") if extras else ("dependencies",):
        if isinstance(dynamic, list) and field in dynamic:
            raise ExplainError(
                f"{name}: {field} is dynamic: it is known only to the project's build, which "
                "would run its code. Give the file that it is read from, with -r."
            )
    optional = project.get("optional-dependencies", {})
    if not isinstance(optional, Mapping):
        raise ExplainError(f"{name}: optional-dependencies must be a table of lists.")
    groups = {str(canonicalize_name(k)): _texts(v, k, name) for k, v in optional.items()}
    own = str(project.get("name", ""))
    wanted = [(extra, name) for extra in extras]
    texts = _texts(project.get("dependencies", []), "dependencies", name)
    found = list(_followed(texts, wanted, groups, canonicalize_name(own), name))
    lines = text.splitlines()
    python = project.get("requires-python", "")
    try:
        versions = SpecifierSet(python)
    except (InvalidSpecifier, AttributeError, TypeError):
        raise ExplainError(
            f"{name}: requires-python = {python!r} means nothing; write such as '>=3.10'."
        ) from None
    at = next((n for n, x in enumerate(lines, 1) if x.lstrip().startswith("requires-python")), 0)
    return Project(tuple((entry, _line(entry, lines)) for entry in found), versions, at)


def _table(text: str, name: str) -> Mapping[str, Any]:
    toml = _toml()
    try:
        content = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ExplainError(f"{name}: not valid TOML: {error}.") from None
    project = content.get("project")
    if project is None:
        tool = content.get("tool")
        poetry = isinstance(tool, Mapping) and "poetry" in tool
        hint = " Poetry's own tables are not read." if poetry else ""
        raise ExplainError(f"{name} has no [project] table, so it asks for nothing.{hint}")
    if not isinstance(project, Mapping):
        raise ExplainError(f"{name}: project must be a table, [project].")
    return project


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


def _texts(value: Any, field: str, name: str) -> list[str]:
    if not isinstance(value, list):
        raise ExplainError(f"{name}: {field} must be a list of strings, such as ['numpy'].")
    for entry in value:
        if not isinstance(entry, str):
            raise ExplainError(f"{name}: {entry!r} is not a requirement.")
    return value


def _followed(
    texts: Sequence[str],
    extras: Sequence[tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
    own: str,
    name: str,
) -> Iterator[str]:
    """The entries, with those of extras in the place of what names the project itself.

    Args:
        texts: the project's dependencies.
        extras: the extras that are asked for, each with the place that asks.
        groups: the entries of each extra.
        own: the project's name.
        name: what to call the file.
    """
    seen: set[tuple[str, str]] = set()

    def entries(texts: Sequence[str], marker: str) -> Iterator[str]:
        for text in texts:
            again = _itself(text, own)
            if again is None:
                yield _under(text, marker)
                continue
            inner = " and ".join(f"({m})" for m in (marker, str(again.marker or "")) if m)
            for extra in sorted(again.extras):
                yield from group(extra, f"{name}: {text!r}", inner)

    def group(extra: str, asks: str, marker: str) -> Iterator[str]:
        key = canonicalize_name(extra)
        if key not in groups:
            known = ", ".join(groups) or "none"
            raise ExplainError(f"{asks} has no extra {extra!r}. It has: {known}.")
        if (key, marker) not in seen:
            seen.add((key, marker))
            yield from entries(groups[key], marker)

    yield from entries(texts, "")
    for extra, asks in extras:
        yield from group(extra, asks, "")


def _itself(text: str, own: str) -> Requirement | None:
    """The parsed entry, if it names the project itself: ``all = ["project[one,two]"]``."""
    try:
        parsed = Requirement(text)
    except InvalidRequirement:
        return None  # whoever parses it to ask for it says so
    return parsed if own and canonicalize_name(parsed.name) == own and not parsed.url else None


def _under(text: str, marker: str) -> str:
    """An entry that counts only where a marker holds too."""
    if not marker:
        return text
    bare, _, own = text.partition(";")
    both = f"({own.strip()}) and ({marker})" if own.strip() else marker
    return f"{bare.strip()} ; {both}"


def _line(entry: str, lines: Sequence[str]) -> int:
    return next((n for n, content in enumerate(lines, 1) if _quoted(entry, content)), 0)


def _quoted(entry: str, line: str) -> bool:
    return f'"{entry}"' in line or f"'{entry}'" in line or entry.replace('"', '\\"') in line

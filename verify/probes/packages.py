"""What is installed, read from metadata and paths: nothing is imported."""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import json
import os
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from verify.versions import InvalidError, Requirement, Version, canonical, marker_environment

_LEFT_BY_PIP = "~"  # begins the names of folders that pip renames while it replaces them
_NOT_IMPORTED = {"tests", "test", "docs", "examples", "benchmarks"}  # strays of several packages


def python(options: Mapping[str, Any]) -> dict[str, Any]:
    """The interpreter."""
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "environment": sys.prefix != sys.base_prefix or bool(os.environ.get("CONDA_PREFIX")),
        "conda": Path(sys.prefix, "conda-meta").is_dir(),
    }


def row(options: Mapping[str, Any]) -> dict[str, Any]:
    """Versions by distribution, and where those come from that no index gave."""
    return {
        "installed": _versions(),
        "origins": {name: url for name, one in _first().items() if (url := _origin(one))},
        "unreadable": _unreadable(),
        "python": ".".join(map(str, sys.version_info[:2])),
    }


def consistency(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every requirement that applies here, of every distribution."""
    requires, unreadable = [], _unreadable()
    for name, one in _first().items():
        try:
            needs = _applying(name)
            requires += [[name, need.name, need.specifier, need.url] for need in needs]
        except InvalidError as error:
            unreadable.append([name, str(_folder(one)), f"{error}"])
    return {"installed": _versions(), "requires": requires, "unreadable": unreadable}


def duplicates(options: Mapping[str, Any]) -> dict[str, Any]:
    """Distributions that are there more than once: [version, directory, metadata] of each."""
    return {
        "duplicates": {
            name: [[one.version, str(_directory(one)), str(_folder(one))] for one in several]
            for name, several in _all().found.items()
            if len({_directory(one) for one in several}) > 1
            or len({one.version for one in several}) > 1
        },
        "leftovers": [str(path) for path in _leftovers()],
    }


def shadowed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Modules that are found elsewhere than their distribution put them, with other contents."""
    found = []
    for name, one in _first().items():
        for module, place in _modules(one).items():
            spec = importlib.machinery.PathFinder.find_spec(module)
            origin = spec.origin if spec else None
            if origin is None or _within(Path(origin), place):
                continue
            if not _same_contents(one, module, Path(origin).parent):
                found.append([module, name, one.version, origin])
    return {"shadowed": found, "standard": list(_shadowing_the_standard_library())}


def files(options: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded files that are missing or empty, by distribution."""
    missing: dict[str, list[str]] = {}
    count = 0
    for name, one in _first().items():
        for path, size in _recorded(one):
            count += 1
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_size or not size:
                    continue
            missing.setdefault(name, []).append(path)
    return {
        "count": count,
        "missing": {name: [len(paths), *paths[:3]] for name, paths in missing.items()},
        "installed": {name: _versions()[name] for name in missing},
        "origins": {name: url for name in missing if (url := _origin(_first()[name]))},
    }


def build(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the installed torch was built for, from its file of constants: not imported."""
    spec = importlib.machinery.PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        return {"version": None, "cuda": None, "hip": None}
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    constants = re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*'([^']*)'", text, re.MULTILINE)
    found = dict(constants)
    return {"version": found.get("__version__"), "cuda": found.get("cuda"), "hip": found.get("hip")}


@dataclass(frozen=True)
class _Installed:
    """All distributions by canonical name, in the order of the path; and those without metadata.

    Of the latter [name, folder, reason] are known, the name from the folder's.
    """

    found: Mapping[str, list[metadata.Distribution]]
    broken: list[list[str]]


@functools.lru_cache(maxsize=1)
def _all() -> _Installed:
    found: dict[str, list[metadata.Distribution]] = defaultdict(list)
    broken: list[list[str]] = []
    folders: dict[str, metadata.Distribution] = {}
    for one in metadata.distributions():
        if not _folder(one).name.startswith(_LEFT_BY_PIP):
            folders.setdefault(str(_folder(one)), one)
    for folder, one in folders.items():
        name, reason = _name(one)
        if name:
            found[canonical(name)].append(one)
        else:
            broken.append([canonical(Path(folder).stem.partition("-")[0]), folder, reason])
    return _Installed(dict(found), broken)


def _name(one: metadata.Distribution) -> tuple[str, str]:
    """A distribution's name; or none, and why its metadata do not say name and version."""
    try:
        about = one.metadata
        name = about["Name"] if "Name" in about else ""  # noqa: SIM401 - its type has no `get`
        version = about["Version"] if "Version" in about else ""  # noqa: SIM401
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return "", f"{type(error).__name__}: {error}"
    lacking = [key for key, value in (("name", name), ("version", version)) if not value]
    return ("", f"no {' and no '.join(lacking)} in its metadata") if lacking else (name, "")


def _first() -> dict[str, metadata.Distribution]:
    """The distributions that imports and `importlib.metadata` see."""
    return {name: several[0] for name, several in _all().found.items()}


def _unreadable() -> list[list[str]]:
    """[name, folder, reason] of those whose metadata do not say what they are."""
    found = list(_all().broken)
    for name, one in _first().items():
        try:
            Version.parse(one.version)
        except InvalidError as error:
            found.append([name, str(_folder(one)), f"{error}"])
    return found


def _leftovers() -> list[Path]:
    """What pip has renamed before removing it, and did not come to remove; it looks at none."""
    places = {Path(entry).resolve() for entry in sys.path if entry.endswith("-packages")}
    return sorted(path for place in places for path in place.glob(f"{_LEFT_BY_PIP}*"))


@functools.lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: one.version or "" for name, one in sorted(_first().items())}


def _applying(name: str) -> list[Requirement]:
    """A distribution's requirements here, with the extras that other distributions ask of it."""
    extras = {"", *_asked_extras().get(name, set())}
    environment = marker_environment()
    return [
        need
        for need in map(Requirement.parse, _first()[name].requires or [])
        if any(need.applies({**environment, "extra": extra}) for extra in extras)
    ]


@functools.lru_cache(maxsize=1)
def _asked_extras() -> dict[str, set[str]]:
    asked: dict[str, set[str]] = defaultdict(set)
    environment = marker_environment()
    for one in _first().values():
        for text in one.requires or []:
            with contextlib.suppress(InvalidError):  # named by `consistency`
                need = Requirement.parse(text)
                if need.extras and need.applies(environment):
                    asked[need.name].update(need.extras)
    return asked


def _directory(one: metadata.Distribution) -> Path:
    return Path(str(one.locate_file(""))).resolve()


def _folder(one: metadata.Distribution) -> Path:
    """Where the metadata lie."""
    return Path(str(getattr(one, "_path", id(one))))


def _record(one: metadata.Distribution) -> list[str]:
    """The lines of RECORD; raise `InvalidError`, which names it, if it is not text."""
    try:
        return (one.read_text("RECORD") or "").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{_folder(one) / 'RECORD'} cannot be read: {error}") from error


def _recorded(one: metadata.Distribution) -> Iterator[tuple[str, int]]:
    """(path, size) of the recorded files that hold code or data, by a quick reading of RECORD."""
    root = str(one.locate_file(""))
    for line in _record(one):
        path, _, rest = line.rpartition(",sha256=")
        size = rest.rpartition(",")[2]
        if path and not path.startswith(("..", '"', "/")) and "__pycache__" not in path:
            yield os.path.join(root, path), int(size) if size.isdigit() else 0


def _modules(one: metadata.Distribution) -> dict[str, Path]:
    """Importable top-level modules and packages of a distribution, and where they lie."""
    editable = _editable(one)
    root = Path(str(one.locate_file("")))
    if editable is not None:
        return dict.fromkeys((one.read_text("top_level.txt") or "").split(), editable)
    found = {}
    for line in _record(one):
        match = re.match(r"(\w+)(/__init__)?\.py,", line)
        if match and match[1] not in _NOT_IMPORTED:
            found[match[1]] = root
    return found


def _editable(one: metadata.Distribution) -> Path | None:
    origin = _direct_url(one)
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return _local(str(origin.get("url", "")))


def _origin(one: metadata.Distribution) -> str:
    """The address that it was installed from, for an editable one its directory.

    Empty if it came from an index, or that is not known.
    """
    if editable := _editable(one):
        return str(editable)
    origin = _direct_url(one)
    url = str(origin.get("url", ""))
    if url.startswith("file://") and not _local(url).exists():
        return ""  # such as a wheel that was downloaded and thrown away
    if repository := origin.get("vcs_info"):
        return f"{repository.get('vcs', 'git')}+{url}@{repository.get('commit_id', '')}"
    return url


def _local(url: str) -> Path:
    return Path(unquote(url.removeprefix("file://")))


def _direct_url(one: metadata.Distribution) -> dict[str, Any]:
    try:
        found = json.loads(one.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _within(path: Path, place: Path) -> bool:
    return place.resolve() in path.resolve().parents


def _same_contents(one: metadata.Distribution, module: str, other: Path) -> bool:
    """Whether the Python files of ``module`` beside ``other`` are those of the distribution."""
    root = Path(str(one.locate_file("")))
    base = other.parent if (root / module).is_dir() else other
    paths = [
        Path(path).relative_to(root)
        for path, _ in _recorded(one)
        if path.endswith(".py")
        and Path(path).relative_to(root).parts[0] in (module, f"{module}.py")
    ]
    return bool(paths) and all(_bytes(root / path) == _bytes(base / path) for path in paths)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _shadowing_the_standard_library() -> Iterator[str]:
    """Files on the path before the standard library that have the name of one of its modules."""
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    for entry in sys.path:
        if entry in standard:
            return
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(entry or ".")):
                module, dot, suffix = name.partition(".")
                package = Path(entry, name, "__init__.py").exists()
                if module in sys.stdlib_module_names and (suffix == "py" or (not dot and package)):
                    yield os.path.join(entry, name)


PROBES = {
    "packages.python": python,
    "packages.row": row,
    "packages.metadata": consistency,
    "packages.floors": row,
    "packages.duplicates": duplicates,
    "packages.shadowed": shadowed,
    "packages.files": files,
    "torch.build": build,
}

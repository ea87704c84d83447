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
from importlib import metadata
from pathlib import Path
from typing import Any

from verify.versions import InvalidError, Requirement, canonical, marker_environment

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
    """Versions by distribution."""
    return {"installed": _versions(), "python": ".".join(map(str, sys.version_info[:2]))}


def consistency(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every requirement that applies here, of every distribution."""
    requires, unreadable = [], []
    for name, one in _first().items():
        try:
            requires += [[name, need.name, need.specifier] for need in _applying(name)]
            if not one.version:
                unreadable.append(f"{name}: no version")
        except InvalidError as error:
            unreadable.append(f"{name}: {error}")
    return {"installed": _versions(), "requires": requires, "unreadable": unreadable}


def duplicates(options: Mapping[str, Any]) -> dict[str, Any]:
    """Distributions that are there more than once: [version, directory] of each."""
    return {
        "duplicates": {
            name: [[one.version, str(_directory(one))] for one in several]
            for name, several in _all().items()
            if len({_directory(one) for one in several}) > 1
            or len({one.version for one in several}) > 1
        }
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


@functools.lru_cache(maxsize=1)
def _all() -> dict[str, list[metadata.Distribution]]:
    """All distributions by canonical name, in the order of the path."""
    found: dict[str, list[metadata.Distribution]] = defaultdict(list)
    seen = set()
    for one in metadata.distributions():
        place = str(getattr(one, "_path", id(one)))
        name = one.metadata["Name"] if one.metadata is not None else None
        if place not in seen and name:
            seen.add(place)
            found[canonical(name)].append(one)
    return dict(found)


def _first() -> dict[str, metadata.Distribution]:
    """The distributions that imports and `importlib.metadata` see."""
    return {name: several[0] for name, several in _all().items()}


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


def _recorded(one: metadata.Distribution) -> Iterator[tuple[str, int]]:
    """(path, size) of the recorded files that hold code or data, by a quick reading of RECORD."""
    root = str(one.locate_file(""))
    for line in (one.read_text("RECORD") or "").splitlines():
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
    for line in (one.read_text("RECORD") or "").splitlines():
        match = re.match(r"(\w+)(/__init__)?\.py,", line)
        if match and match[1] not in _NOT_IMPORTED:
            found[match[1]] = root
    return found


def _editable(one: metadata.Distribution) -> Path | None:
    try:
        origin = json.loads(one.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(origin["url"].removeprefix("file://"))


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

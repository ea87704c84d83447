"""What is installed in the running environment, as requirements."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Parsed
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from verify.explain.errors import ExplainError
from verify.explain.requirements import Origin, Request, Requirement

_PLACE = Origin(label="installed")


def installed(folder: Path, without: Collection[str] = ()) -> Request:
    """One requirement for each distribution of the running environment.

    Most are pins. A distribution that came from a folder or an address is on no index, and one of
    that name there is somebody else's: the resolver gets a wheel that holds nothing but its
    metadata, and is told to take no other. Local versions such as ``2.4.0+cu121`` are on no
    public index either, and are asked for as what they are builds of.

    Args:
        folder: where such wheels are kept.
        without: packages that are left out.

    Raises:
        ExplainError: what is installed does not say what it is.
    """
    found = _distributions()
    asked: list[Requirement] = []
    here: list[str] = []
    for name, copies in sorted(found.items()):
        if name in without:
            continue
        version = _version(copies[0], name)
        if any(_elsewhere(copy) for copy in copies):
            text = f"{name} @ {_wheel(copies[0], name, found, folder).resolve().as_uri()}"
            here.append(text)
            asked.append(Requirement(text, _PLACE, shown=f"{name} {version}"))
        else:
            asked.append(Requirement(f"{name}=={version.public}", _PLACE))
    return Request(tuple(asked), options=_only(here, folder))


def _only(here: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Options by which these answer whoever needs them, also where they are not asked for."""
    if not here:
        return ()
    text = "\n".join([*here, ""])
    limits = folder / f"{_digest(text)}.txt"
    _keep(limits, text.encode())
    return ("--constraints", str(limits.resolve()))


def _elsewhere(dist: metadata.Distribution) -> bool:
    """Whether a distribution came from a folder or an address, or is the folder of a project."""
    if dist.read_text("direct_url.json"):
        return True
    site = Path(str(dist.locate_file(""))).name in ("site-packages", "dist-packages")
    return not site and dist.read_text("METADATA") is None  # an .egg-info beside its sources


def _distributions() -> dict[str, list[metadata.Distribution]]:
    """The distributions of each canonical name; the first is the one that is imported."""
    found: dict[str, list[metadata.Distribution]] = {}
    for dist in metadata.distributions():
        try:
            name = canonicalize_name(dist.metadata["Name"] or "")
        except UnicodeDecodeError:
            where = getattr(dist, "_path", "a distribution")  # its name cannot be read either
            raise ExplainError(
                f"The metadata of {where} is not text. Remove that folder, and reinstall the "
                "package: pip install --force-reinstall NAME"
            ) from None
        if name:
            found.setdefault(name, []).append(dist)
    return found


def _version(dist: metadata.Distribution, name: str) -> Version:
    try:
        return Version(dist.version)
    except (InvalidVersion, TypeError):
        raise ExplainError(
            f"The installed {name} says its version is {dist.version!r}, which is none. "
            f"Reinstall it: pip install --force-reinstall {name}"
        ) from None


def _wheel(dist: metadata.Distribution, name: str, found: Collection[str], folder: Path) -> Path:
    """A wheel that holds nothing but a distribution's metadata."""
    version = _version(dist, name)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    for field in ("Requires-Python", "Provides-Extra"):
        lines += [f"{field}: {value}" for value in dist.metadata.get_all(field) or []]
    lines += [f"Requires-Dist: {_answered(need, found)}" for need in dist.requires or []]
    about = "\n".join([*lines, "", ""])
    stem = f"{name.replace('-', '_')}-{version}"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", about)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    path = folder / _digest(about) / f"{stem}-py3-none-any.whl"
    _keep(path, content.getvalue())
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep(path: Path, content: bytes) -> None:
    """Write a file whose name says what is in it, unless it is there."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        raise ExplainError(
            f"{path} cannot be written: {error.strerror}. Name another folder with --cache."
        ) from None


def _answered(need: str, found: Collection[str]) -> str:
    """A need without its address, if what is installed answers it."""
    try:
        parsed = Parsed(need)
    except InvalidRequirement:
        return need  # the resolver reads old forms too, or complains
    if not parsed.url or canonicalize_name(parsed.name) not in found:
        return need
    parsed.url = None
    return str(parsed)

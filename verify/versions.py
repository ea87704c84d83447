"""Versions and requirements as packages' metadata writes them, without `packaging`.

verify must read the metadata of environments in which nothing works, so it cannot borrow a
parser from them. The rules are PEP 440 (versions), PEP 508 (requirements, markers) and PEP 503
(names); tests compare with `packaging`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_VERSION = re.compile(
    r"""\s*v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)
    (?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d*))?
    (?P<post>-(?P<post_bare>\d+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>\d*))?
    (?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d*))?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
_CLAUSE = re.compile(r"\s*(===|~=|==|!=|<=|>=|<|>)\s*([^\s,]+)\s*")


class InvalidError(ValueError):
    """A text is not what the metadata standards allow in its place."""


@dataclass(frozen=True)
class Version:
    """A version; `key` orders public versions as PEP 440 says, `local` comes after them."""

    release: tuple[int, ...]
    pre: tuple[str, int] | None
    post: int | None
    dev: int | None
    epoch: int = 0
    local: tuple[str | int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read a version; raise `InvalidError` if it is none."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise InvalidError(f"{text!r} is not a version.")
        found = match.groupdict()
        pre = (found["pre"] or "").lower()
        local = re.split(r"[-_.]", (found["local"] or "").lower())
        return cls(
            release=tuple(int(part) for part in found["release"].split(".")),
            pre=(_PRE.get(pre, pre), int(found["pre_n"] or 0)) if pre else None,
            post=int(found["post_bare"] or found["post_n"] or 0) if found["post"] else None,
            dev=int(found["dev_n"] or 0) if found["dev"] else None,
            epoch=int(found["epoch"] or 0),
            local=tuple(int(part) if part.isdigit() else part for part in local if part),
        )

    @property
    def is_prerelease(self) -> bool:
        """Whether it comes before its release."""
        return self.pre is not None or self.dev is not None

    @property
    def key(self) -> tuple[Any, ...]:
        """Sorts public versions; what follows a ``+`` is left out."""
        release = self.release
        while len(release) > 1 and release[-1] == 0:
            release = release[:-1]
        only_dev = self.pre is None and self.post is None and self.dev is not None
        pre = ("",) if only_dev else self.pre or ("z",)
        post = -1 if self.post is None else self.post
        dev = float("inf") if self.dev is None else self.dev
        return (self.epoch, release, pre, post, dev)

    def __lt__(self, other: Version) -> bool:
        return self.full_key < other.full_key

    @property
    def full_key(self) -> tuple[Any, ...]:
        """Sorts versions with their local parts; numbers come after words."""
        local = tuple(
            (1, part, "") if isinstance(part, int) else (0, 0, part) for part in self.local
        )
        return (*self.key, local)

    def starts_with(self, prefix: Version) -> bool:
        """Whether ``==prefix.*`` accepts it."""
        length = len(prefix.release)
        padded = self.release + (0,) * (length - len(self.release))
        return self.epoch == prefix.epoch and padded[:length] == prefix.release


def is_version(text: str) -> bool:
    """Whether ``text`` is a version."""
    return _VERSION.fullmatch(text) is not None


def at_least(version: str, floor: str) -> bool:
    """Whether ``version`` is ``floor`` or newer."""
    return Version.parse(version).key >= Version.parse(floor).key


def accepts(specifier: str, version: str) -> bool:
    """Whether a specifier such as ``>=0.30.0,<1.0`` accepts a version that is installed.

    Pre-releases count like any other version: what is installed was chosen by somebody.
    """
    clauses = [clause for clause in specifier.split(",") if clause.strip()]
    return all(_accepts_one(clause, version) for clause in clauses)


def _accepts_one(clause: str, text: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        raise InvalidError(f"{clause.strip()!r} is not a version specifier.")
    operator, wanted = match.groups()
    if operator == "===":
        return text.strip().lower() == wanted.lower()
    version = Version.parse(text)
    if wanted.endswith(".*"):
        same = version.starts_with(Version.parse(wanted[:-2]))
        return same if operator == "==" else not same
    bound = Version.parse(wanted)
    if operator in ("==", "!="):
        same = version.full_key == bound.full_key if bound.local else version.key == bound.key
        return same if operator == "==" else not same
    if operator == "~=":
        prefix = Version(bound.release[:-1], None, None, None, bound.epoch)
        return version.key >= bound.key and version.starts_with(prefix)
    if operator == "<=":
        return version.key <= bound.key
    if operator == ">=":
        return version.key >= bound.key
    if operator == "<":  # 2.0rc1 is not "before 2.0", unless a pre-release is named
        earliest = bound if bound.is_prerelease else replace(bound, dev=0)
        return version.key < earliest.key
    # 2.0.post1 is not "after 2.0"
    same_release = version.starts_with(bound) and bound.starts_with(version)
    own_post = version.post is not None and same_release and version.pre == bound.pre
    is_released = bound.post is None and bound.dev is None  # else it has no post-releases
    return version.key > bound.key and not (own_post and is_released)


def canonical(name: str) -> str:
    """A distribution's name in the form in which two spellings of it are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Requirement:
    """One ``Requires-Dist`` line."""

    name: str
    extras: tuple[str, ...]
    specifier: str
    marker: str
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a requirement; raise `InvalidError` if it is none."""
        match = re.fullmatch(
            r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*"
            r"(?:@\s*(\S+)\s*|\(?([^;()]*)\)?)\s*(?:;(.*))?",
            text,
            re.DOTALL,
        )
        if match is None:
            raise InvalidError(f"{text!r} is not a requirement.")
        name, extras, url, specifier, marker = match.groups()
        return cls(
            canonical(name),
            tuple(canonical(e.strip()) for e in (extras or "").split(",") if e.strip()),
            (specifier or "").strip(),
            (marker or "").strip(),
            url or "",
        )

    def applies(self, environment: Mapping[str, str]) -> bool:
        """Whether its marker holds; ``environment`` maps PEP 508's names to values."""
        return not self.marker or _Marker(self.marker, environment).value()


_TOKEN = re.compile(r"\s*(\(|\)|'[^']*'|\"[^\"]*\"|===|~=|==|!=|<=|>=|<|>|[A-Za-z_.]+)")


class _Marker:
    """Evaluates a marker by recursive descent: or, and, comparison."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._text, self._environment = text, environment
        self._tokens: list[str] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise InvalidError(f"{text!r} is not an environment marker.")
            self._tokens.append(match[1])
            position = match.end()

    def value(self) -> bool:
        result = self._any()
        if self._tokens:
            raise InvalidError(f"{self._text!r} is not an environment marker.")
        return result

    def _next(self) -> str:
        if not self._tokens:
            raise InvalidError(f"{self._text!r} ends too early.")
        return self._tokens.pop(0)

    def _found(self, word: str) -> bool:
        if self._tokens[:1] != [word]:
            return False
        self._tokens.pop(0)
        return True

    def _any(self) -> bool:
        result = self._all()
        while self._found("or"):
            result = self._all() or result
        return result

    def _all(self) -> bool:
        result = self._one()
        while self._found("and"):
            result = self._one() and result
        return result

    def _one(self) -> bool:
        if self._found("("):
            result = self._any()
            if self._next() != ")":
                raise InvalidError(f"{self._text!r} lacks a closing parenthesis.")
            return result
        left, operator = self._operand(), self._next()
        if operator == "not":
            operator += " " + self._next()
        return _compare(left, operator, self._operand())

    def _operand(self) -> str:
        token = self._next()
        if token[0] in "'\"":
            return token[1:-1]
        if token not in self._environment:
            raise InvalidError(f"{token!r} is unknown to environment markers.")
        return self._environment[token]


def _compare(left: str, operator: str, right: str) -> bool:
    if operator in ("in", "not in"):
        return (left in right) is (operator == "in")
    try:
        return accepts(operator + right, left)
    except InvalidError:
        pass  # not versions: PEP 508 falls back to comparing texts
    texts = {
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }
    if operator not in texts:
        raise InvalidError(f"{operator!r} is not an operator of environment markers.")
    return texts[operator]


def marker_environment() -> dict[str, str]:
    """What markers may ask about the running interpreter."""
    import os
    import platform
    import sys

    found = sys.implementation.version
    release = f"{found.major}.{found.minor}.{found.micro}"
    suffix = "" if found.releaselevel == "final" else f"{found.releaselevel[0]}{found.serial}"
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": release + suffix,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
        "extra": "",
    }

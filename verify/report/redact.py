"""Taking out of reports who and where somebody is.

A name that none of verify's own texts could contain is replaced wherever it stands as a word. A
name that is also an ordinary word here (a user called ``torch``, ``root`` or ``will``) would ruin
the report, and as a mere word it tells nobody's name: it is replaced only where the place says
that it is a name, such as in ``/scratch/torch/models`` or ``torch@node-7``.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from verify import catalogue, rows

_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)(?:$|_)",
    re.IGNORECASE,
)
# a password that is written as no address allows (with a blank, "/" or "@") is one all the same;
# a number after ":" is a port
LOGIN = (
    re.compile(
        r"(\w+://)(?:[^\s/@:?#\[]*:(?!\s|\d{1,5}[,.;:]?(?:[\s/?#'\"`)\]}>|]|$))"
        r"[^@\n]*(?:@[^\s/@?#]*)*|[^\s/@:?#]+:?)@"
    ),
    r"\1[login]@",
)
_PATTERNS = (
    (re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|glpat|pypi|sk)[_-][A-Za-z0-9_-]{8,}"), "[token]"),
    LOGIN,
    (re.compile(r"(?i)\b(bearer|basic|token)\s+(?=[^\s\"']*[0-9=])[^\s\"']{8,}"), r"\1 [token]"),
    (re.compile(r"(/home/|/Users/|\\Users\\)[^/\\\s:'\"]+"), r"\1[user]"),
)
_LONG = 8  # characters of a secret that is replaced within words too
_SHORT = 3  # below, any name is ordinary: too many words have it in them
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w~./\\\]-]))(?:/[^/\s:'\"<>|,;()\[\]]+){2,}")
_SYSTEM = {"bin", "boot", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr"}
_SOFTWARE = re.compile(r"(?:lib|lib64|bin|include|share|(?:site|dist)-packages|python[\d.]+)$")
_NOBODY = {
    "admin", "app", "build", "builder", "ci", "dev", "docker", "guest", "home", "jenkins", "jovyan",
    "localhost", "nobody", "root", "runner", "test", "tmp", "ubuntu", "user", "users", "work",
}  # fmt: skip

Replace = Callable[[str], str]


class Redactor:
    """Replaces user names, home directories, hosts and tokens in texts.

    Args:
        environment: environment variables; values of those that hold secrets are replaced.
        users: names of people.
        hosts: names of machines.
        homes: home directories.
        environments: directories of Python environments, shown as ``ENV`` unless they are the
            system's.
        ordinary: words that reports contain whoever writes them, in lower case.
        patterns: what is replaced besides, wherever it stands, and by what.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        users: Iterable[str] = (),
        hosts: Iterable[str] = (),
        homes: Iterable[str] = (),
        environments: Iterable[str] = (),
        ordinary: Collection[str] = frozenset(),
        patterns: Iterable[tuple[re.Pattern[str], str]] = _PATTERNS,
    ) -> None:
        secrets = {value for name, value in environment.items() if _is_secret(name, value)}
        places = dict.fromkeys(homes, "~")
        places |= {one: "ENV" for one in environments if one.split("/")[1] not in _SYSTEM}
        names = {**dict.fromkeys(users, "[user]"), **dict.fromkeys(hosts, "[host]")}
        rules: list[tuple[int, Replace]] = []
        for text in secrets:
            if text.lower() not in ordinary:
                rules.append((len(text), _secret(text)))
        for text, shown in places.items():
            if len(text) > 1:
                rules.append((len(text), _directory(text.rstrip("/"), shown)))
        self._rules = [rule for _, rule in sorted(rules, key=lambda one: -one[0])]
        self._rules += [_substitution(pattern, shown) for pattern, shown in patterns]
        for name, shown in sorted(names.items(), key=lambda one: -len(one[0])):
            if len(name) >= _SHORT and name.lower() not in ordinary:
                self._rules.append(_word(name, shown))
            elif name:
                self._rules.append(_marked_host(name) if shown == "[host]" else _marked_user(name))

    def text(self, text: str) -> str:
        """``text`` without what says who and where."""
        for rule in self._rules:
            text = rule(text)
        return text

    def all(self, value: Any) -> Any:
        """The same for everything in lists, tuples and mappings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.all(name): self.all(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.all(one) for one in value]
        return value


def here() -> Redactor:
    """A redactor for this user on this machine."""
    homes, users = {os.path.expanduser("~")}, {os.environ.get("SUDO_USER", "")}
    with contextlib.suppress(Exception):  # a container's user may have no name
        users.add(getpass.getuser())
    with contextlib.suppress(Exception):
        import pwd  # not on Windows

        account = pwd.getpwuid(os.getuid())
        users.add(account.pw_name)
        homes.add(account.pw_dir)
    users |= {os.path.basename(home) for home in homes}
    host = platform.node()
    return Redactor(
        os.environ,
        users=users,
        hosts={host, host.partition(".")[0]},
        homes={*homes, *map(os.path.realpath, homes)},
        environments={sys.prefix, os.path.realpath(sys.prefix)},
        ordinary=ordinary_words(),
    )


def ordinary_words() -> set[str]:
    """Words that reports contain whoever writes them: verify's own, packages, modules."""
    locked = (lock for row in rows.load().values() for lock in row.locked.values())
    packages = {word for lock in locked for name in lock for word in (name, *name.split("-"))}
    return _NOBODY | catalogue.words() | packages | {*sys.stdlib_module_names}


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable holds a secret, rather than a switch or the path of a file."""
    return bool(_SECRET.search(name)) and len(value) > _SHORT and not value.startswith(("/", "~"))


def _substitution(pattern: re.Pattern[str], shown: str) -> Replace:
    return lambda text: pattern.sub(shown, text)


def _secret(secret: str) -> Replace:
    if len(secret) >= _LONG:
        return lambda text: text.replace(secret, "[token]")
    return _word(secret, "[token]")


def _directory(path: str, shown: str) -> Replace:
    """``path`` and what is below it, but not ``path-2``."""
    return _substitution(re.compile(rf"(?<![\w.-]){re.escape(path)}(?![\w-]|\.\w)"), shown)


def _word(name: str, shown: str) -> Replace:
    """``name`` where neither a letter nor a digit touches it."""
    word = rf"(?<![^\W_]){re.escape(name)}(?![^\W_])"
    return _substitution(re.compile(word, re.IGNORECASE), shown)


def _marked_user(name: str) -> Replace:
    """``name`` where the place says that it is a user's."""
    word = re.escape(name)
    marked = re.compile(
        rf"(?<![\w.-]){word}(?=@[\w\[])"
        rf"|(?<=~){word}(?!\w)"
        rf"|(?i:(?<=\buser=)|(?<=\blogname=)|(?<=\busername=)|(?<=\buser ')){word}(?!\w)"
    )

    def in_path(match: re.Match[str]) -> str:
        parts = match[0].split("/")  # the first is empty
        nobodys = 2 if parts[1] == "dev" else 1  # /dev/shm holds people's directories, as /data
        for index, part in enumerate(parts):
            if parts[1] in _SYSTEM or _SOFTWARE.match(part):
                break
            if index > nobodys and part.lower() == name.lower():  # below it are other names
                return "/".join([*parts[:index], "[user]", *parts[index + 1 :]])
        return match[0]

    return lambda text: _PATH.sub(in_path, marked.sub("[user]", text))


def _marked_host(name: str) -> Replace:
    """``name`` where the place says that it is a machine's."""
    word = re.escape(name)
    marked = rf"(?:(?<=\w@)|(?<=\]@)|(?<=://)){word}(?![\w-])|(?<![\w./-]){word}(?=:\d)"
    return _substitution(re.compile(marked, re.IGNORECASE), "[host]")

"""Taking out of reports who and where somebody is."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|glpat|pypi|sk)[_-][A-Za-z0-9_-]{8,}"), "[token]"),
    (re.compile(r"(\w+://)[^\s/@:]+(?::[^\s/@]*)?@"), r"\1[login]@"),
    (re.compile(r"(?i)\b(bearer|basic|token)\s+(?=[^\s\"']*[0-9=])[^\s\"']{8,}"), r"\1 [token]"),
    (re.compile(r"(/home/|/Users/|\\Users\\)[^/\\\s:'\"]+"), r"\1[user]"),
)
_ORDINARY = {"root", "user", "admin", "ubuntu", "runner", "localhost"}  # names of nobody
_SHORTEST = 3


class Redactor:
    """Replaces user names, home directories, hosts and tokens in texts.

    Args:
        environment: environment variables; values of those that hold secrets are replaced.
        users: names of people.
        hosts: names of machines.
        homes: home directories.
        environments: directories of Python environments, shown as ``ENV``.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        users: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        homes: tuple[str, ...] = (),
        environments: tuple[str, ...] = (),
    ) -> None:
        secrets = [
            value
            for name, value in environment.items()
            if _SECRET_NAME.search(name) and len(value) > _SHORTEST and "/" not in value[:1]
        ]
        whole = [(text, "[token]") for text in secrets]
        whole += [(path, "ENV") for path in environments if len(path) > _SHORTEST]
        whole += [(path, "~") for path in homes if len(path) > _SHORTEST]
        self._whole = sorted(whole, key=lambda pair: -len(pair[0]))
        words = [(name, "[host]") for name in hosts] + [(name, "[user]") for name in users]
        self._words = [
            (re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])"), shown)
            for name, shown in sorted(words, key=lambda pair: -len(pair[0]))
            if len(name) >= _SHORTEST and name.lower() not in _ORDINARY
        ]

    def text(self, text: str) -> str:
        """``text`` without what says who and where."""
        for part, shown in self._whole:
            text = text.replace(part, shown)
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
        for pattern, shown in self._words:
            text = pattern.sub(shown, text)
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
    home = os.path.expanduser("~")
    users = [os.path.basename(home), os.environ.get("SUDO_USER", "")]
    with contextlib.suppress(Exception):  # a container's user may have no name
        users.append(getpass.getuser())
    host = platform.node()
    return Redactor(
        os.environ,
        users=tuple(users),
        hosts=(host, host.partition(".")[0]),
        homes=(home, os.path.realpath(home)),
        environments=(sys.prefix, os.path.realpath(sys.prefix)),
    )

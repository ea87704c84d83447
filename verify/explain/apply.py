"""Writing a change back into the files: comments, order, encoding and line endings stay."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from verify.explain.errors import ExplainError
from verify.explain.requirements import Requirement, decode


@dataclass(frozen=True)
class Edit:
    """What becomes of one file.

    Attributes:
        name: the file, as the user named it.
        before: its text.
        after: the text that replaces it.
        encoding: how it is stored.
    """

    name: str
    before: str
    after: str
    encoding: str

    @property
    def diff(self) -> list[str]:
        """The change as a unified diff, without line ends."""
        old, new = self.before.splitlines(), self.after.splitlines()
        return list(difflib.unified_diff(old, new, self.name, self.name, n=1, lineterm=""))


def edits(moved: Mapping[Requirement, Requirement]) -> list[Edit]:
    """The files' new texts; what was not read from a file is left out.

    Raises:
        ExplainError: a file is no longer what it was, or cannot be changed in this way.
    """
    by_file: dict[str, list[tuple[Requirement, Requirement]]] = {}
    for old, new in moved.items():
        if old.origin.line and old.origin.file != "-":
            by_file.setdefault(old.origin.file, []).append((old, new))
    return [_edit(name, pairs) for name, pairs in by_file.items()]


def _edit(name: str, pairs: list[tuple[Requirement, Requirement]]) -> Edit:
    before, encoding = decode(Path(name).read_bytes(), name)
    lines = before.splitlines(keepends=True)
    for old, new in pairs:
        if old.hashes:
            raise ExplainError(
                f"{old.origin}: the hashes of {old} belong to that version. Make the change by "
                "hand and renew them."
            )
        place = old.origin.line - 1
        line = lines[place] if place < len(lines) else ""
        if old.text not in line:
            raise ExplainError(f"{old.origin}: {old.text!r} is not written there in one piece. "
                               "Make the change by hand.")  # fmt: skip
        if name.endswith(".toml"):  # there may be several on a line: take the whole string
            for quote in "\"'":
                line = line.replace(f"{quote}{old.text}{quote}", f"{quote}{new.text}{quote}", 1)
        else:
            line = line.replace(old.text, new.text, 1)
        lines[place] = line
    return Edit(name, before, "".join(lines), encoding)


def write(changes: list[Edit]) -> None:
    """Replace each file at once by its new text; none is left half written.

    Raises:
        ExplainError: a file cannot be written.
    """
    for change in changes:
        target = Path(change.name).resolve()  # a link stays a link
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                file.write(change.after.encode(change.encoding))
            shutil.copymode(target, file.name)
            os.replace(file.name, target)
        except OSError as error:
            raise ExplainError(f"{change.name} cannot be written: {error.strerror}.") from None

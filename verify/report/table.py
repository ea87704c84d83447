"""The table that is printed while checks run."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

from verify.report.mending import plan
from verify.result import Result, Status

_COLOURS = {Status.PASS: "32", Status.WARN: "33", Status.FAIL: "31", Status.SKIP: "2"}
_NAME = 24  # columns of an identifier


class Table:
    """Prints results as they come, and on a terminal a line of what is running.

    Args:
        out: where to.
        titles: titles of the groups, by name.
    """

    def __init__(self, out: TextIO, titles: dict[str, str]) -> None:
        self._out, self._titles = out, titles
        self._terminal = out.isatty()
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
        self._group = ""
        self._line = False

    def result(self, result: Result) -> None:
        """Print a result, and what to do about it."""
        self._clear()
        if result.group != self._group:
            self._group = result.group
            print(f"\n{self._titles[result.group]}", file=self._out)
        status = self._status(result.status)
        lead = f"  {status} {result.identifier:<{_NAME}} "
        plain = len(f"  {result.status.value} ") + max(_NAME, len(result.identifier)) + 1
        wrapped = textwrap.wrap(result.have, self._width - plain) or [""]
        print(lead + wrapped[0], file=self._out)
        for line in wrapped[1:]:
            print(" " * plain + line, file=self._out)
        if result.status in (Status.WARN, Status.FAIL):
            self._more("need", result.need)
            self._more("why", result.why)
            self._more("fix", result.fix)
        self._out.flush()

    def running(self, seconds: Mapping[str, float]) -> None:
        """Show what is running, and for how long, on a terminal only."""
        if self._terminal and seconds:
            shown = ", ".join(f"{name} {time:.0f} s" for name, time in seconds.items())
            text = f"  … {shown}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{text}", end="", file=self._out, flush=True)
            self._line = True

    def close(self, results: Sequence[Result], last: str) -> None:
        """Print the failures again as steps that mend them, then the verdict."""
        self._clear()
        found = plan(results)
        if found.steps:
            print("\nTo mend, in this order:", file=self._out)
        for result in found.steps:
            print(
                f"  {self._status(result.status)} {result.label}",
                file=self._out,
            )
            self._more("have", result.have)
            self._more("fix", result.fix)
        if found.again:
            indent = "  "
            print(
                textwrap.fill(
                    found.again, self._width, initial_indent=indent, subsequent_indent=indent,
                    break_long_words=False, break_on_hyphens=False,
                ),
                file=self._out,
            )  # fmt: skip
        print(f"\n{last}", file=self._out)

    def _status(self, status: Status) -> str:
        if not self._coloured:
            return status.value
        return f"\x1b[{_COLOURS[status]}m{status.value}\x1b[0m"

    def _more(self, name: str, text: str) -> None:
        if text:
            lead = f"       {name:<5}"
            print(
                textwrap.fill(
                    text, self._width, initial_indent=lead, subsequent_indent=" " * len(lead),
                    break_long_words=False, break_on_hyphens=False,
                ),
                file=self._out,
            )  # fmt: skip

    def _clear(self) -> None:
        if self._line:
            print("\r\x1b[K", end="", file=self._out)
            self._line = False

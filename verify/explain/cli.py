"""``python -m verify explain``: read, ask, say."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from packaging.utils import canonicalize_name

from verify import rows
from verify.explain import apply, report
from verify.explain.answer import Explanation, explain
from verify.explain.errors import ExplainError
from verify.explain.installed import installed
from verify.explain.requirements import (
    Origin,
    Request,
    Requirement,
    from_names,
    read_file,
)
from verify.explain.uv import Target, Uv, cache_folder
from verify.report.redact import LOGIN, Redactor, ordinary_words

RESOLVABLE, CONFLICT, MISUSE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExplainError(f"{message}. See --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m verify explain",
        description="Say why requirements do not resolve, and the smallest change that makes them.",
        epilog="Exit code: 0 resolvable, 1 conflict explained, 2 misuse or no answer.",
    )
    what = parser.add_argument_group("what is asked for (all may be combined)")
    what.add_argument(
        "names", nargs="*", metavar="REQUIREMENT", help="such as transformers==4.51.3"
    )
    what.add_argument(
        "-r",
        action="append",
        default=[],
        metavar="FILE",
        dest="files",
        help="a requirements file, a pyproject.toml, or - for standard input",
    )
    what.add_argument(
        "-c",
        action="append",
        default=[],
        metavar="FILE",
        dest="constraints",
        help="a file of constraints",
    )
    what.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME",
        help="also this extra of the pyproject",
    )
    what.add_argument(
        "--installed",
        action="store_true",
        help="everything installed in the environment this runs in",
    )
    what.add_argument("--row", metavar="ROW", help="the pins of a row of the matrix, never moved")
    how = parser.add_argument_group("for which environment")
    how.add_argument("--python", metavar="VERSION", help="such as 3.11; default: this one")
    how.add_argument(
        "--platform",
        metavar="NAME",
        default="",
        help="linux, macos, windows, or any that uv knows; default: this one",
    )
    how.add_argument(
        "--as-of",
        metavar="DATE",
        default="",
        help="nothing published after this day counts, such as 2025-06-01",
    )
    how.add_argument("--pre", action="store_true", help="pre-releases count")
    how.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="NAME",
        help="this package may be built from source; without, only wheels count",
    )
    how.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="never move this package"
    )
    out = parser.add_argument_group("answer")
    out.add_argument("--json", action="store_true", help="for programs")
    out.add_argument(
        "--apply",
        nargs="?",
        type=int,
        const=1,
        metavar="N",
        help="write change N (the first) into the files",
    )
    out.add_argument("--offline", action="store_true", help="ask caches only")
    out.add_argument("--refresh", action="store_true", help="forget answers of earlier runs")
    out.add_argument("--cache", type=Path, metavar="FOLDER", help="where answers are kept")
    return parser


@dataclass
class _Out:
    """Where the command speaks: user names and passwords in addresses do not get out.

    Attributes:
        as_json: whether it speaks to programs, which get one document.
    """

    as_json: bool

    def __post_init__(self) -> None:
        # packages look like tokens (hf-transfer), and users want their paths: only what cannot
        # be anything else is replaced
        secrets = Redactor(os.environ, ordinary=ordinary_words(), patterns=[LOGIN])
        self._shown = secrets.all

    def answer(self, words: Iterable[str], document: Mapping[str, Any]) -> None:
        """Say the answer, in the form that is wanted."""
        if self.as_json:
            print(json.dumps(self._shown(document), indent=1))
        else:
            print(self._shown("\n".join(words)))

    def complain(self, error: ExplainError) -> None:
        """Say why there is no answer."""
        if self.as_json:
            self.answer([], {"schema": report.SCHEMA, "error": str(error)})
        self.note(f"explain: {error}")

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        print(self._shown(text), file=sys.stderr)


def main(argv: list[str]) -> int:
    """Run the command; the result is its exit code."""
    out = _Out(as_json="--json" in argv)
    try:
        return _run(_parser().parse_intermixed_args(argv), out)
    except ExplainError as error:
        out.complain(error)
        return MISUSE
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace, out: _Out) -> int:
    row = _row(options.row) if options.row else None
    request = _request(options, row)
    if options.extra and not any(file.suffix == ".toml" for file in request.files):
        raise ExplainError(
            f"--extra {', '.join(options.extra)}: extras are those of a pyproject.toml, and none "
            "is given with -r. The extra of a package is asked for as in 'package[extra]'."
        )
    requirements = _kept(request.requirements, options.keep)
    target = Target(
        python=_python(options.python or (row.pythons[0] if row else Target.python)),
        platform=options.platform or ("linux" if row else ""),
        as_of=options.as_of,
        prerelease=options.pre or request.prerelease,
        build=tuple(options.build),
        options=request.options,
        offline=options.offline,
    )
    _suitable(target.python, request)
    uv = Uv(target, options.cache or cache_folder(), refresh=options.refresh)
    names = {name for r in rows.load().values() for lock in r.locked.values() for name in lock}
    found = explain(requirements, uv, names) if requirements else Explanation((), {})
    shown = {k: v for k, v in asdict(target).items() if k != "options"}
    document = report.as_json(found, shown)
    also = _differences(row, target.python, found.versions) if row else {}
    words = list(report.words(found, str(target), also))
    wanted = options.apply is not None and found.conflicts and not found.unknown
    try:
        done = _apply(found, options.apply) if wanted else ""
    except ExplainError as error:  # the answer stands, though it was not written
        out.answer(words, {**document, "error": str(error)})
        out.note(f"explain: {error}")
        return MISUSE
    out.answer(words, document)
    if done:
        out.note(done)
        return RESOLVABLE
    if found.unknown:
        return MISUSE
    return CONFLICT if found.conflicts else RESOLVABLE


def _request(options: argparse.Namespace, row: rows.Row | None) -> Request:
    given = (options.files, options.names, options.constraints, options.installed, row)
    if not any(given):
        raise ExplainError(
            "Nothing is asked for. Give requirements, a file with -r, or --installed. See --help."
        )
    for name in options.names:
        if Path(name).is_file():
            raise ExplainError(f"{name} is a file. To read it: -r {name}")
        if re.search(r"\.(txt|in|toml)$", name):
            raise ExplainError(f"There is no file {name}; files are named with -r.")
    request = Request()
    if row:
        place = Origin(label=f"row {row.name}")
        pins = (Requirement(f"{n}=={v}", place, keep=True) for n, v in row.pins.items())
        request += Request(tuple(pins))
    for file in options.files:
        request += read_file(file, options.extra)
    request += from_names(options.names)
    for file in options.constraints:
        request += read_file(file, constraint=True)
    if options.installed:  # what is named replaces what is installed
        named = {r.name for r in request.requirements}
        request += installed((options.cache or cache_folder()) / "installed", named)
    return request


def _row(name: str) -> rows.Row:
    known = rows.load()
    if name not in known:
        raise ExplainError(f"There is no row {name!r}. The rows are: {', '.join(known)}.")
    return known[name]


def _kept(requirements: Sequence[Requirement], names: Iterable[str]) -> list[Requirement]:
    keep = {canonicalize_name(n) for given in names for n in given.split(",") if n}
    missing = keep - {r.name for r in requirements}
    if missing:
        raise ExplainError(
            f"--keep {', '.join(sorted(missing))}: that is not among what is asked for."
        )
    return [replace(r, keep=r.keep or r.name in keep) for r in requirements]


def _python(version: str) -> str:
    if not re.fullmatch(r"3(\.\d+){1,2}((a|b|rc)\d+)?", version):
        raise ExplainError(f"--python {version}: a version such as 3.11 is needed.")
    return version


def _suitable(python: str, request: Request) -> None:
    for origin, versions in request.pythons:
        if not versions.contains(python, prereleases=True):
            raise ExplainError(
                f"{origin}: the project needs Python {versions}, and this is asked for Python "
                f"{python}. Name one that fits with --python."
            )


def _differences(
    row: rows.Row, python: str, versions: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """The versions that a solution has and a row's lock has otherwise."""
    locked = row.locked.get(".".join(python.split(".")[:2]), {})
    return {n: (locked[n], v) for n, v in versions.items() if locked.get(n, v) != v}


def _apply(found: Explanation, number: int) -> str:
    """Write a change into the files; the result says so.

    Raises:
        ExplainError: there is no such change, or it cannot be written.
    """
    if not found.changes:
        raise ExplainError("There is no change to apply.")
    if not 1 <= number <= len(found.changes):
        raise ExplainError(f"There is no change {number}: --apply takes 1 to {len(found.changes)}.")
    moved = found.changes[number - 1].moved
    edits = apply.edits(moved)
    written = sum(1 for old in moved if old.origin.line and old.origin.file != "-")
    if written < len(moved):
        raise ExplainError(
            "The change is not only in files, so nothing was written. Make it by hand."
        )
    apply.write(edits)
    names = ", ".join(edit.name for edit in edits)
    return f"Change {number} is written to {names}."

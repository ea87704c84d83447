"""The command line of verify."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from verify import catalogue, machine, rows
from verify.catalogue import CHECKS
from verify.process import signals_as_interrupts
from verify.recommend import rank
from verify.report import compare, document, files, junit, page, summary
from verify.report.redact import Redactor, here
from verify.report.table import Table
from verify.result import Result, Tier
from verify.runner import MisuseError, Run, select

IMAGE = "zo2:{row}"  # how the images of this repository are named
_TITLES = {group.name: group.title for group in catalogue.GROUPS}
_RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
_PYTHONS = ("3.11", "3.12", "3.13", "3.10")  # those of the rows, if the running one is not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 (something failed) or 2 (misuse)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has every letter
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given and given[0] in _COMMANDS else ""
    try:
        with signals_as_interrupts():
            return _COMMANDS[command](given[1:] if command else given)
    except (MisuseError, document.UnreadableError, files.UnwritableError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("verify: interrupted.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has had enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        print(f"verify: {error}. Nothing was decided.", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("verify: this is a mistake in verify itself; please report it.", file=sys.stderr)
        return 2


def _suite(given: Sequence[str]) -> int:
    options = _suite_parser().parse_args(given)
    if options.list:
        return _list()
    if options.page:
        print(catalogue.page(), end="")
        return 0
    matrix = rows.load()
    if options.row and options.row not in matrix:
        raise MisuseError(f"There is no row {options.row!r}; rows are {', '.join(matrix)}.")
    for path in filter(None, (options.json, options.junit, options.html)):
        files.check(path)  # minutes should not be spent on what cannot be written
    tier = Tier[options.tier.upper()]
    checks = select(tier, options.only, options.skip)
    redactor, table = here(), None if options.quiet else Table(sys.stdout, _TITLES)

    def report(result: Result) -> None:
        if table:
            table.result(_redacted(result, redactor))

    run = Run(
        checks,
        matrix,
        matrix[options.row] if options.row else None,
        {"for_model": options.for_model, "online": options.online},
        report,
        table.running if table else lambda running: None,
        options.limit,
    )
    started, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    results = run()
    found = redactor.all(
        document.document(
            results,
            run.machine,
            tier=options.tier,
            row=options.row,
            strict=options.strict,
            started=started.strftime("%Y-%m-%d %H:%M:%SZ"),
            seconds=time.monotonic() - clock,
        )
    )
    last = found["verdict"]
    if others := len(CHECKS) - len(checks):
        last += f" {others} other checks were not asked for (--list; all: --tier full)."
    if table:
        table.close([_redacted(result, redactor) for result in results], last)
    else:
        print(last)
    if options.json:
        files.write(options.json, document.text(found))
    if options.junit:
        files.write(options.junit, junit.text(found))
    if options.html:
        files.write(options.html, page.text(found, _TITLES))
    return summary.exit_code(results, options.strict)


def _redacted(result: Result, redactor: Redactor) -> Result:
    shown = redactor.text
    return replace(
        result,
        have=shown(result.have),
        need=shown(result.need),
        why=shown(result.why),
        fix=shown(result.fix),
    )


def _suite_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verify",
        description="Does this installation of zo2 work, and if not, what exactly is wrong and "
        "what mends it?",
        epilog="Other commands: recommend (a row for this machine), compare A.json B.json, "
        "explain (why requirements do not resolve). Exit code: 0 nothing failed, 1 something "
        "did, 2 verify itself was misused or broke.",
    )
    add = parser.add_argument
    add(
        "--tier",
        choices=[tier.name.lower() for tier in Tier],
        default="default",
        help="quick: seconds; default: a minute; full: minutes",
    )
    add("--quick", dest="tier", action="store_const", const="quick", help="--tier quick")
    add("--full", dest="tier", action="store_const", const="full", help="--tier full")
    add(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these checks or groups, and what they need",
    )
    add(
        "--skip",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="not these checks or groups",
    )
    add("--list", action="store_true", help="list all checks and end")
    add("--row", metavar="ROW", help="compare with this row of the matrix, not the nearest one")
    add(
        "--for-model",
        type=_model,
        metavar="ID|N_BILLION",
        help="whether and how this model, or one of so many billion parameters, fits",
    )
    add("--online", action="store_true", help="also try to reach the model hub")
    add("--strict", action="store_true", help="warnings count as failures")
    add("--limit", type=_seconds, metavar="SECONDS", help="cut every check off after this time")
    add("--quiet", action="store_true", help="print the verdict only")
    add("--json", type=Path, metavar="FILE", help="write everything that was found")
    add("--junit", type=Path, metavar="FILE", help="write JUnit's XML")
    add("--html", type=Path, metavar="FILE", help="write one page for people")
    add("--page", action="store_true", help="print docs/troubleshooting.md and end")
    return parser


def _seconds(text: str) -> float:
    """A time limit, for argparse."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _model(text: str) -> str:
    """A model's name or size in billions, for argparse."""
    try:
        size = float(text)
    except ValueError:
        if text.strip():
            return text
        raise argparse.ArgumentTypeError("a model's name, directory or size is needed") from None
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of billions above 0")
    return text


def _list() -> int:
    for group in catalogue.GROUPS:
        print(f"{group.name}: {group.title}")
        for check in group.checks:
            needs = f"  needs {', '.join(check.needs)}" if check.needs else ""
            print(f"  {check.identifier:<24} {check.tier.name.lower():<8} {check.title}{needs}")
    return 0


def _recommend(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verify recommend", description="Name the row that suits this machine."
    )
    parser.add_argument(
        "--python", action="append", metavar="3.X", help="a Python that can be had; repeatable"
    )
    options = parser.parse_args(given)
    redactor = here()
    found = machine.read()
    best, *others = rank(rows.load(), found, options.python or [_RUNNING, *_PYTHONS])
    gpus = ", ".join(f"{gpu.name} ({gpu.architecture})" for gpu in found.gpus or found.managed)
    print(redactor.text(f"Machine: {gpus or 'no GPU'}; driver {found.driver or 'none'}"))
    if best.suits:
        lock = best.row.lock_name(best.python)
        print(f"Row:     {best.row.name}, Python {best.python}. {best.why}")
        print(f"         {best.row.why}")
        print(f"Lock:    pip install --require-hashes -r lockfiles/{lock}")
        print(f"Image:   {IMAGE.format(row=best.row.name)}")
    else:
        print("No row suits this machine.")
        others = [best, *others]
    print("\nThe others:")
    for choice in others:
        state = "would do too" if choice.suits else "refused"
        print(f"  {choice.row.name:<12} {state}: {choice.why}")
    return 0 if best.suits else 1


def _compare(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verify compare", description="Say what differs between two reports."
    )
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    options = parser.parse_args(given)
    found = compare.differences(document.read(options.first), document.read(options.second))
    for line in compare.lines(found, (options.first.name, options.second.name)):
        print(line)
    return int(bool(found))


def _explain(given: Sequence[str]) -> int:
    try:
        from verify.explain.cli import main as explain
    except ModuleNotFoundError as error:
        raise MisuseError(f"explain needs {error.name}: pip install {error.name}.") from error
    return explain(list(given))


_COMMANDS = {"": _suite, "recommend": _recommend, "compare": _compare, "explain": _explain}

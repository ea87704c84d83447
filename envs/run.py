"""Run the checks of the matrix in the environments of its rows, and keep what they found."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from envs import environment, lockfile, matrix
from envs.environment import Environment
from envs.errors import EnvsError
from envs.results import Difference, Outcome, RowResult
from verify.rows import Row

# what may depend on the row; the tools have tests that do not
TESTS = ("-n", "auto", "tests", "--ignore=tests/envs", "--ignore=tests/explain")
GOLDEN = matrix.ROOT / ".nox" / "golden"


def run_row(row: Row, before: Sequence[str], say: Callable[[str], object]) -> RowResult:
    """Build the environment of ``row``, run verify and the tests in it, and compare its training.

    Args:
        row: the row.
        before: names of the rows that its training is compared with, where they were run.
        say: takes one line of progress.

    Raises:
        EnvsError: the environment cannot be built, or its training breaks.
    """
    started = time.perf_counter()
    built = environment.build(row, say=say)
    seconds = time.perf_counter() - started
    outcomes = {"install": Outcome(True, "hashes enforced", round(seconds, 1))}
    say(f"row {row.name}: verify")
    outcomes["verify"] = _verify(built)
    say(f"row {row.name}: tests")
    outcomes["tests"] = _tests(built)
    say(f"row {row.name}: training compared with other rows")
    differences = _differences(built, before)
    lock = environment.LOCKS / row.lock_name(built.python)
    return RowResult(
        date=datetime.date.today().isoformat(),
        python=_output(built, "-c", "import platform; print(platform.python_version())").strip(),
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {_gpu(built)}",
        lock=lockfile.read(lock, matrix.relative(lock)).seal[:12],
        outcomes=outcomes,
        differences=differences,
    )


def _verify(built: Environment) -> Outcome:
    with tempfile.TemporaryDirectory() as work:
        report = Path(work, "verify.json")
        code, seconds = _timed(built, "zo2-verify", "--row", built.row.name, "--json", str(report))
        if not report.exists():
            return Outcome(False, f"broke with exit code {code}", seconds)
        results = json.loads(report.read_text(encoding="utf-8"))["results"]
    return Outcome(code == 0, _count(result["status"].lower() for result in results), seconds)


def _tests(built: Environment) -> Outcome:
    with tempfile.TemporaryDirectory() as work:
        report = Path(work, "tests.xml")
        code, seconds = _timed(built, "pytest", "-q", *TESTS, f"--junitxml={report}")
        if not report.exists():
            return Outcome(False, f"broke with exit code {code}", seconds)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        words = [next((kind.tag for kind in case), "passed") for case in cases]
    return Outcome(code == 0, _count(words), seconds)


def _differences(built: Environment, before: Sequence[str]) -> dict[str, Difference]:
    mine = GOLDEN / built.row.name
    _output(built, "-m", "tests.golden", "record", str(mine))
    others = [str(GOLDEN / name) for name in before if (GOLDEN / name / "losses.json").exists()]
    answer = _output(built, "-m", "tests.golden", "compare", *others, str(mine))
    found = json.loads(answer.splitlines()[-1])
    return {family: Difference(**values) for family, values in found.items()} if others else {}


def _count(words: object) -> str:
    """``"512 passed, 27 skipped"`` from one word for each."""
    found = list(words)  # type: ignore[call-overload]
    return ", ".join(f"{found.count(word)} {word}" for word in sorted(set(found), key=_order))


def _order(word: str) -> tuple[bool, str]:
    return not word.startswith("pass"), word


def _timed(built: Environment, command: str, *arguments: str) -> tuple[int, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [built.script(command), *arguments], cwd=matrix.ROOT, env=_variables(built), check=False
    )
    return done.returncode, round(time.perf_counter() - started, 1)


def _output(built: Environment, *arguments: str) -> str:
    done = subprocess.run(
        [built.script("python"), *arguments],
        cwd=matrix.ROOT,
        env=_variables(built),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EnvsError(f"`python {' '.join(arguments[:3])} ...` ended with code {done.returncode}")
    return done.stdout


def _gpu(built: Environment) -> str:
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return _output(built, "-c", code).strip() or "no GPU"


def _variables(built: Environment) -> dict[str, str]:
    """This process's variables, with the environment's commands first on PATH."""
    path = f"{built.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": str(built.folder)}

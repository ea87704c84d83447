"""Running checks: which, in what order, two processes at a time."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from verify import machine
from verify.catalogue import CHECKS, GROUP_OF, GROUPS, judge, skip
from verify.process import Facts, Outcome, Prober
from verify.result import Check, Context, Result, Status, Tier
from verify.rows import Row

WORKERS = 2
_HUB = ("hub", "host")  # what looks at the user's own caches and variables


class MisuseError(Exception):
    """The command line asks for something that is not there."""


def select(tier: Tier, only: Sequence[str] = (), without: Sequence[str] = ()) -> list[Check]:
    """The checks of a tier, or those named with what they need, less those of ``without``.

    Args:
        tier: how much time they may take.
        only: identifiers, or groups, of which the checks of the tier are meant.
        without: identifiers or groups.

    Raises:
        MisuseError: a name is neither.
    """
    excluded = _named(without)
    if only:
        named = _named(only)
        chosen = {name for name in named if name in only or CHECKS[name].tier <= tier}
        waiting = list(chosen)
        while waiting:
            check = CHECKS[waiting.pop()]
            more = {*check.needs} - chosen - excluded
            chosen |= more
            waiting += more
    else:
        chosen = {name for name, check in CHECKS.items() if check.tier <= tier}
    return [check for name, check in CHECKS.items() if name in chosen - excluded]


def _named(names: Sequence[str]) -> set[str]:
    found = set()
    for name in names:
        these = {one for one in CHECKS if name in (one, GROUP_OF[one])}
        if not these:
            groups = ", ".join(group.name for group in GROUPS)
            raise MisuseError(f"There is no check or group {name!r}; groups are {groups} (--list).")
        found |= these
    return found


class Run:
    """One run of a selection of checks.

    Every module of probes has a thread that asks its probes in turn; a check waits for what it
    needs, and no more than two probes work at once.

    Args:
        checks: what to run, in the order of the report.
        rows: the compatibility matrix.
        row: the row that was asked for, if any.
        options: ``for_model`` and ``online``.
        report: called with each result, in the order of ``checks``.
        progress: called several times a second with the checks that run now, and for how many
            seconds each has.
        limit: seconds after which any check is cut off, if its own limit is not lower.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        rows: Mapping[str, Row],
        row: Row | None = None,
        options: Mapping[str, Any] | None = None,
        report: Callable[[Result], None] = lambda result: None,
        progress: Callable[[Mapping[str, float]], None] = lambda running: None,
        limit: float | None = None,
    ) -> None:
        self.machine = machine.Machine()
        self._checks, self._rows, self._row = checks, rows, row
        self._directory = Path()
        self._packages: Facts | None = None
        self._asking = threading.Lock()
        self._options = dict(options or {})
        self._report, self._progress = report, progress
        self._limit = math.inf if limit is None else limit
        self._names = {check.identifier for check in checks}
        self._results: dict[str, Result] = {}
        self._blocked: set[str] = set()  # what failed, and what could not be run because of that
        self._running: dict[str, float] = {}  # since when
        self._stopped = False
        self._probers: list[Prober] = []
        self._changed = threading.Condition()
        self._working = threading.Semaphore(WORKERS)

    def __call__(self) -> list[Result]:
        """Run the checks; the results come in the order of the selection."""
        with _scratch_directory() as directory:
            with Prober("machine", environment=_environment(directory, "machine")) as prober:
                about = prober.ask("machine", machine.LIMIT)
            self.machine = machine.from_outcome(about)
            self._directory = directory
            modules = dict.fromkeys(check.probe for check in self._checks)
            with ThreadPoolExecutor(max(1, len(modules))) as pool:
                jobs = [pool.submit(self._module, name, about, directory) for name in modules]
                try:
                    self._show(jobs)
                finally:
                    self._stop()
        return [self._results[check.identifier] for check in self._checks]

    def _stop(self) -> None:
        """Let the threads end, after an interrupt too."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for prober in self._probers:
            prober.kill()

    def _show(self, jobs: Sequence[Future[None]]) -> None:
        """Report results in order as they come in."""
        for check in self._checks:
            while check.identifier not in self._results:
                for job in jobs:
                    if job.done():
                        job.result()  # raises what a thread has raised
                with self._changed:
                    self._changed.wait(timeout=0.2)
                    running = dict(self._running)
                self._progress({name: time.monotonic() - t for name, t in running.items()})
            self._report(self._results[check.identifier])

    def _module(self, module: str, about: Outcome, directory: Path) -> None:
        """Run the checks whose probes are in one module, in one process if it survives them."""
        gpus = len(self.machine.gpus)
        options = {
            **self._options,
            "gpus": gpus,
            "device": "cuda:0" if gpus else "cpu",
            "memory": self.machine.facts.get("memory", {}).get("available", 0),
        }
        with Prober(module, options, _environment(directory, module)) as prober:
            self._probers.append(prober)
            for check in ordered(self._checks):
                if check.probe == module:
                    self._wait_for(check)
                    if self._stopped:
                        return
                    self._done(*self._one(check, about if module == "machine" else prober))

    def _wait_for(self, check: Check) -> None:
        first = self._names & {*check.needs, *check.after}
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or first <= self._results.keys())

    def _one(self, check: Check, source: Prober | Outcome) -> tuple[Result, bool]:
        """A check's result, and whether it blocks those that need it."""
        other = {name: result.facts for name, result in self._results.items()}
        context = Context(
            self.machine, self._rows, self._row, other, self._options, self._installed
        )
        failed = [name for name in check.needs if name in self._blocked]
        if failed:
            return skip(check, f"it needs {failed[0]}, which did not pass"), True
        if reason := check.skip(context):
            return skip(check, reason), False
        if isinstance(source, Outcome):
            outcome = replace(source, seconds=0.0)
        else:
            with self._working:
                with self._changed:
                    self._running[check.identifier] = time.monotonic()
                outcome = source.ask(check.identifier, min(check.limit, self._limit))
                with self._changed:
                    del self._running[check.identifier]
        result = judge(check, outcome, context)
        return result, result.status is Status.FAIL

    def _installed(self) -> Facts:
        """What is installed, which mends name whether or not it is checked; found out once."""
        with self._asking:
            if self._packages is None:
                environment = _environment(self._directory, "packages")
                with Prober("packages", environment=environment) as prober:
                    found = prober.ask("packages.row", CHECKS["packages.row"].limit)
                self._packages = found.facts or {}  # the check itself says why there are none
            return self._packages

    def _done(self, result: Result, blocks: bool) -> None:
        with self._changed:
            if blocks:
                self._blocked.add(result.identifier)
            self._results = {**self._results, result.identifier: result}
            self._changed.notify_all()


def ordered(checks: Sequence[Check]) -> list[Check]:
    """The checks with each after those that it waits for, otherwise in their order."""
    known = {check.identifier: check for check in checks}
    found: dict[str, Check] = {}

    def place(check: Check) -> None:
        for name in (*check.needs, *check.after):
            if name in known and name not in found:
                place(known[name])
        found.setdefault(check.identifier, check)

    for check in checks:
        place(check)
    return list(found.values())


@contextlib.contextmanager
def _scratch_directory() -> Iterator[Path]:
    """A directory for everything that libraries write; nothing of it stays."""
    last: OSError | None = None
    for place in (None, "/dev/shm", "."):
        try:
            made = tempfile.TemporaryDirectory(
                prefix="zo2-verify-", dir=place, ignore_cleanup_errors=True
            )
        except OSError as error:
            last = error
            continue
        with made as directory:
            yield Path(directory)
        return
    raise MisuseError(f"No directory for temporary files can be written ({last}): set TMPDIR.")


def _environment(directory: Path, module: str) -> dict[str, str]:
    """Variables of a probing process, which keep caches of libraries in ``directory``."""
    found = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        found.setdefault(name, str(max(1, (os.cpu_count() or 2) // WORKERS)))
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine waiting threads cost most
    found["TMPDIR"] = str(directory)
    found["CUDA_CACHE_PATH"] = str(directory / "cuda")
    found["TRITON_CACHE_DIR"] = str(directory / "triton")
    found["TORCHINDUCTOR_CACHE_DIR"] = str(directory / "inductor")
    found["NUMBA_CACHE_DIR"] = str(directory / "numba")
    found["MPLCONFIGDIR"] = str(directory / "matplotlib")
    if _has_bytecode("torch"):
        found["PYTHONDONTWRITEBYTECODE"] = "1"
    else:  # compiling it anew in every process would take most of the time
        found["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
    if module not in _HUB:
        found["HF_HOME"] = str(directory / "huggingface")
        found["HF_HUB_OFFLINE"] = found["HF_DATASETS_OFFLINE"] = "1"
        found["TOKENIZERS_PARALLELISM"] = "false"
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
            found.pop(name, None)
    return found


def _has_bytecode(package: str) -> bool:
    spec = PathFinder.find_spec(package)
    return bool(spec and spec.origin and Path(spec.origin).with_name("__pycache__").is_dir())

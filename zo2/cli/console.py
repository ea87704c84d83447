"""What a command says, and how it ends: output, progress, one-line errors, Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console

from zo2.errors import ConfigError, DataError, ModelError, ZO2Error, first_line

if TYPE_CHECKING:
    from zo2.training import Step

INTERRUPTED = 130  # the exit code that shells give a program ended by Ctrl-C
MISTAKE = 2  # as for arguments that do not exist

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)

F = TypeVar("F", bound=Callable[..., Any])


def one_line_errors(mistake: int = 1) -> Callable[[F], F]:
    """Print what goes wrong in a command as one line on stderr; ``--debug`` adds the traceback.

    The exit code is ``mistake`` where settings, data or model cannot be used, else 1.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                command(*args, **kwargs)
            except typer.Exit:
                raise
            except KeyboardInterrupt:
                _print_error("Interrupted; nothing was saved.")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if kwargs.get("debug"):
                    traceback.print_exc()
                _print_error(_told(error))
                unusable = isinstance(error, (ConfigError, DataError, ModelError))
                raise typer.Exit(mistake if unusable else 1) from None

        return wrapped  # type: ignore[return-value]

    return decorate


def _told(error: Exception) -> str:
    """An error in words: its own, if it was raised on purpose."""
    if isinstance(error, (ZO2Error, OSError, MemoryError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {first_line(error)} (--debug shows where)"


def _print_error(message: str) -> None:
    err.print("[bold red]Error:[/]", end=" ")
    err.print(" ".join(message.split()), markup=False)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C ask for an end after the current step; a second Ctrl-C ends at once."""
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        err.print("Stopping after this step (Ctrl-C again: at once, without saving) ...")

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def show_progress(steps: int) -> Iterator[Callable[[Step], None]]:
    """Show steps as they come: a bar on a terminal, elsewhere about ten lines."""
    from zo2.training import memory

    def text(step: Step) -> str:
        return f"loss {step.loss:.3f}  {step.tokens / step.seconds:,.0f} tokens/s  {memory()}"

    if not out.is_terminal:
        every = max(1, steps // 10)

        def line(step: Step) -> None:
            if step.step % every == 0 or step.step in (1, steps):
                out.print(f"Step {step.step}/{steps}: {text(step)}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = ("Training", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, Remaining(), console=out) as progress:
        bar = progress.add_task("train", total=steps, text="")
        yield lambda step: progress.update(bar, completed=step.step, text=text(step))


def duration(seconds: float) -> str:
    """Seconds for people."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds >= 60 else f"{seconds:.1f} s"

"""Passes as coroutines: each is an ordinary function that pauses where it enters a unit.

A pass runs in a greenlet of its own, so it can be paused inside the model's unmodified forward,
any number of calls deep. `Lockstep.resume` runs one pass to its first entry, and from then on
through the unit it waits at to the next.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from greenlet import GreenletExit, greenlet
from torch import nn

from zo2.engine.modulestate import ModuleState, WatchedModules, Written
from zo2.engine.partition import Unit
from zo2.engine.threadstate import Switcher, capture
from zo2.methods import Perturbation

Body = Callable[[], Any]


class Pass:
    """One run of ``body`` with the weights perturbed.

    Attributes:
        perturbation: what the pass's weights are.
        at: the unit the pass waits to enter; ``None`` before its first and after its last.
        calling: the module that it called there.
        pauses: how often it has waited.
        inside: the units whose modules are running now.
        bound: units whose weights it has, and that it may enter without waiting.
        result: what ``body`` returned, once `done`.
        state: torch's and the interpreter's, of a thread, while the pass waits.
        written: what it has set on modules, while it waits.
    """

    def __init__(self, perturbation: Perturbation, body: Body) -> None:
        self.perturbation = perturbation
        self.at: Unit | None = None
        self.calling: nn.Module | None = None
        self.pauses = 0
        self.result: Any = None
        self.inside: list[Unit] = []
        self.bound: set[Unit] = set()
        self._body = body
        self._greenlet = greenlet(self._run)
        self._greenlet.gr_context = contextvars.copy_context()
        self.state = capture()
        self.written: Written = {}

    @property
    def done(self) -> bool:
        return bool(self._greenlet.dead)

    def _run(self) -> None:
        self.result = self._body()

    def pause(self, unit: Unit, calling: nn.Module) -> None:
        """Called within the pass: wait until ``unit`` may be entered, by a call of a module."""
        self.at, self.calling = unit, calling
        self.pauses += 1
        self.wait()
        self.at = None

    def wait(self) -> None:
        """Called within the pass: whoever resumes it knows what for."""
        self._greenlet.parent.switch()

    def go(self) -> None:
        self._greenlet.switch()

    def kill(self) -> None:
        if not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)


class Lockstep:
    """The passes of one sweep; a context manager that ends them all, whatever happens.

    Args:
        passes: what runs.
        model: the module that they call.
        watched: what watches its modules.
        keep: whether the passes' attributes on the model's modules outlast the sweep.
    """

    def __init__(
        self, passes: Sequence[Pass], model: nn.Module, watched: WatchedModules, keep: bool
    ) -> None:
        self.passes = passes
        self.current: Pass | None = None
        self._modules = ModuleState(model, watched, keep)

    def __enter__(self) -> Lockstep:
        self._switcher = Switcher().__enter__()
        self._modules.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        for unfinished in self.passes:
            if not unfinished.done:
                self._enter(unfinished, unfinished.kill)
        self._modules.__exit__()
        self._switcher.__exit__()

    def resume(self, one: Pass) -> None:
        """Run ``one`` until it waits at its next unit or is done; its errors come through."""
        self._enter(one, one.go)

    def has_set_any(self, places: Set[int]) -> bool:
        """Whether a pass has set attributes or hooks in dictionaries of these identities."""
        return self._modules.has_set_any(places)

    @property
    def pauses(self) -> int:
        """How often the pass that runs now has paused."""
        return self.current.pauses if self.current else 0

    def _enter(self, one: Pass, move: Callable[[], None]) -> None:
        torch.clear_autocast_cache()  # it knows weights by object, and what they hold changes
        self._switcher.enter(one.state)
        self._modules.enter(one.written)
        self.current, self._modules.watching = one, True
        try:
            move()
        finally:
            self.current, self._modules.watching = None, False
            one.written = self._modules.leave(one.done)
            one.state = self._switcher.leave()
            self._switcher.enter(self._switcher.first)

"""Notices that steps take as long as Python and the driver need to queue them, and tries a remedy.

The GPU is then through with a step's work when its losses are read, and the link idles as well.
"""

from __future__ import annotations

import logging
from collections import deque
from statistics import median
from typing import Protocol

logger = logging.getLogger("zo2")

STEPS = 20  # of which most are held up: some compile kernels, or wait for something else
SHARE = 1 / 20  # of the time until a step is queued; if losses come sooner, the GPU was waiting
LONGEST = 500  # steps that a remedy is given to show itself
RARER = 10  # times as many, until what did not help is tried again: hosts have slow hours

# what the user may do
USE_GRAPHS = "cuda_graphs=True (--cuda-graphs) may make them faster."
RAISE_BUDGET = "A larger device_memory_budget has room for CUDA graphs, which may make them faster."


class Remedy(Protocol):
    """Something that may make steps take less of the host's time, without changing results."""

    def begin(self) -> bool:
        """Apply it; returns whether that was possible."""
        ...

    def end(self) -> None:
        """Undo it."""
        ...

    @property
    def applied(self) -> int:
        """How far it is applied; as long as this grows, steps take longer than they will."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether it has come to an end by itself since it began."""
        ...


class HostBound:
    """Looks after such steps: tries a remedy, and keeps it if steps are faster with it.

    Args:
        remedy: ``None`` if there is none but to ask the user.
        advice: what the user may do where the remedy is not possible.
    """

    def __init__(self, remedy: Remedy | None, advice: str = USE_GRAPHS) -> None:
        self._remedy, self._advice = remedy, advice
        self._times: deque[float] = deque(maxlen=STEPS)  # of the last steps
        self._held_up: deque[bool] = deque(maxlen=STEPS)  # whether the host held these up
        # steps since it last held up but few; how many there are until the remedy is tried
        self._count, self._patience = 0, STEPS
        self._before: float | None = None  # seconds of a step without the remedy, once it is tried
        self._applied = self._tried = 0
        self._done = False

    @property
    def is_undecided(self) -> bool:
        """Whether steps may soon take another time than now."""
        soon = self._count > 0 and self._patience == STEPS
        return not self._done and (self._before is not None or soon)

    def step(self, queued: float, waited: float) -> None:
        """A step was queued within so many seconds; then its losses were waited for."""
        if self._done:
            return
        if self._before is None:
            self._watch(queued, waited)
        else:
            self._try(queued + waited)

    def _watch(self, queued: float, waited: float) -> None:
        self._times.append(queued + waited)
        self._held_up.append(waited < SHARE * queued)
        self._count += 1
        if len(self._times) == STEPS and 2 * sum(self._held_up) <= STEPS:
            self._count = 0
        if self._count < self._patience:
            return
        self._before = median(self._times)
        self._times.clear()
        self._held_up.clear()
        if self._remedy is not None and self._remedy.begin():
            return
        self._done = True
        if self._patience == STEPS:  # it was never tried
            logger.warning(
                "Steps take as long as this host needs to queue them (%.0f ms), and the GPU waits "
                "for it. %s",
                1e3 * self._before, self._advice,
            )  # fmt: skip

    def _try(self, seconds: float) -> None:
        assert self._remedy is not None
        assert self._before is not None
        self._tried += 1
        if self._remedy.applied > self._applied:
            self._applied = self._remedy.applied
            self._times.clear()
        elif self._applied:
            self._times.append(seconds)
        gone = self._remedy.is_gone
        if len(self._times) < STEPS and self._tried < LONGEST and not gone:
            return
        after = median(self._times) if self._times else self._before
        if after < self._before and not gone:
            self._done = True
            logger.info(
                "Steps took as long as this host needs to queue them (%.0f ms). They take %.0f ms "
                "with passes through streamed blocks replayed as CUDA graphs, and the results are "
                "the same; cuda_graphs=False (--no-cuda-graphs) would prevent it.",
                1e3 * self._before, 1e3 * after,
            )  # fmt: skip
            return
        self._remedy.end()
        self._done = not self._applied  # then it never will be
        self._before, self._applied, self._tried = None, 0, 0
        self._times.clear()
        self._count, self._patience = 0, RARER * self._patience

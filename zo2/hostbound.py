"""Notices that steps take as long as Python and the driver need to queue them.

The GPU is then through with a step's work when its losses are read, and the link idles as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("zo2")

STEPS = 20  # in succession: the first ones compile kernels, and one may wait for something else
SHARE = 1 / 20  # of the time until a step is queued; if losses come sooner, the GPU was waiting


class HostBound:
    """Does something about such steps, once, or says what may be done.

    Args:
        relieve: makes steps take less of the host's time; returns whether it could.

    Attributes:
        steps: how many in succession, up to the last one, have waited for the host.
        done: whether that was enough.
    """

    def __init__(self, relieve: Callable[[], bool]) -> None:
        self._relieve = relieve
        self.steps, self.done = 0, False

    def step(self, queued: float, waited: float) -> None:
        """A step was queued within so many seconds; then its losses were waited for."""
        self.steps = self.steps + 1 if waited < SHARE * queued else 0
        if self.steps < STEPS or self.done:
            return
        self.done = True
        if self._relieve():
            logger.info(
                "Steps take as long as this host needs to queue them (%.0f ms), so passes through "
                "streamed blocks are replayed as CUDA graphs from now on, where their forward "
                "allows it, with the same results. cuda_graphs=False (--no-cuda-graphs) leaves "
                "them as they are.",
                1e3 * queued,
            )
        else:
            logger.warning(
                "Steps take as long as this host needs to queue them (%.0f ms), and the GPU waits "
                "for it. cuda_graphs=True (--cuda-graphs) may make them faster.",
                1e3 * queued,
            )

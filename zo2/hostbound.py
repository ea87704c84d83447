"""Notices that steps take as long as Python and the driver need to queue them.

The GPU is then through with a step's work when its losses are read, and the link idles as well.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("zo2")

STEPS = 20  # in succession: the first ones compile kernels, and one may wait for something else
SHARE = 1 / 20  # of the time until a step is queued; if losses come sooner, the GPU was waiting


class HostBound:
    """Says once that CUDA graphs may make steps faster."""

    def __init__(self) -> None:
        self._steps = 0
        self._said = False

    def step(self, queued: float, waited: float) -> None:
        """A step was queued within so many seconds; then its losses were waited for."""
        self._steps = self._steps + 1 if waited < SHARE * queued else 0
        if self._steps == STEPS and not self._said:
            self._said = True
            logger.warning(
                "Steps take as long as this host needs to queue them (%.0f ms), and the GPU waits "
                "for it. cuda_graphs=True (--cuda-graphs) may make them faster.",
                1e3 * queued,
            )

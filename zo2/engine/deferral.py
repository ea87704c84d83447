"""When the streamed weights that a sweep has updated go home.

An update is a seed and a coefficient: to apply it once more takes the GPU less time than the link
takes to bring the weights home. So where steps wait for the link, or for Python, which queues each
copy, a parcel goes home only in every second, third or fourth sweep, and in the sweeps between its
passes use weights that were updated on the device and are thrown away. The parcels take turns, so
that sweeps are alike.
"""

from __future__ import annotations

from zo2.engine.lanes import Waits

MOST = 4  # rounds that weights may lack: each costs noise, and the next saves ever less
# Of a sweep's time, what computation waits for copies. Twice as rarely saves 5% of the link's time,
# and costs some percent of computation's.
LINK_BOUND, COMPUTE_BOUND = 1 / 16, 1 / 64
# Of a sweep's units, those for which it waits for Python. When a sweep begins it always does.
HOST_BOUND = 1 / 4
PATIENCE, MOST_PATIENCE = 4, 64  # sweeps without waits until weights go home more often


class Deferral:
    """Decides for each sweep which parcels go home.

    One sweep that waits for little may have waited for something else (a kernel to be compiled,
    say), so it takes several until weights go home more often, and twice as many each time that
    this was of no avail.

    Args:
        every: sweeps from one way home to the next; ``None`` adapts it to what computation waits
            for.

    Attributes:
        waits: whether computation waits for copies at all, as far as is known.
    """

    def __init__(self, every: int | None) -> None:
        self._adapts = every is None
        self._every = every or 1
        self._most = every or MOST  # rounds that a parcel may lack before it goes home
        self._sweep = 0
        self._patience, self._calm = PATIENCE, 0
        self._eased = False  # whether the last change was to go home more often
        self.waits = True
        self._changed = False  # since the sweep that is reported next

    def begin(self) -> None:
        """The next sweep begins."""
        self._sweep += 1

    def is_due(self, number: int, lacks: int) -> bool:
        """Whether parcel ``number``, which lacks so many rounds, goes home in this sweep."""
        return lacks >= self._most or (number + self._sweep) % self._every == 0

    def learn(self, waits: Waits) -> None:
        """What computation waited for in the sweep before the last."""
        self.waits = waits.copies >= COMPUTE_BOUND
        if not self._adapts:
            return
        if self._changed:
            self._changed = False
            return
        host_bound = waits.host > HOST_BOUND
        self._calm = 0 if self.waits or host_bound else self._calm + 1
        if (waits.copies > LINK_BOUND or host_bound) and self._every < MOST:
            if self._eased:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            self._change(self._every + 1)
        elif self._calm >= self._patience and self._every > 1:
            self._change(self._every - 1)

    def _change(self, every: int) -> None:
        self._eased = every < self._every
        self._every, self._calm, self._changed = every, 0, True

"""When the streamed weights that a sweep has updated go home.

An update is a seed and a coefficient: to apply it once more takes the GPU less time than the link
takes to bring the weights home. So where steps wait for the link, each parcel goes home only in
every second, third or fourth sweep, and in the sweeps between its passes use weights that were
updated on the device and are thrown away. The parcels take turns, so that sweeps are alike.
"""

from __future__ import annotations

MOST = 4  # rounds that weights may lack: each costs noise, and the next saves ever less
LINK_BOUND, COMPUTE_BOUND = 1 / 8, 1 / 32  # of a sweep's time, what computation waits for copies


class Deferral:
    """Decides for each sweep which parcels go home.

    Args:
        every: sweeps from one way home to the next; ``None`` adapts it to what computation waits
            for.
    """

    def __init__(self, every: int | None) -> None:
        self._adapts = every is None
        self._every = every or 1
        self._most = every or MOST  # rounds that a parcel may lack before it goes home
        self._sweep = 0

    def begin(self) -> None:
        """The next sweep begins."""
        self._sweep += 1

    def is_due(self, number: int, lacks: int) -> bool:
        """Whether parcel ``number``, which lacks so many rounds, goes home in this sweep."""
        return lacks >= self._most or (number + self._sweep) % self._every == 0

    def learn(self, waited: float) -> None:
        """In a sweep, computation waited for copies for this share of the time."""
        if not self._adapts:
            return
        if waited > LINK_BOUND:
            self._every = min(self._every + 1, MOST)
        elif waited < COMPUTE_BOUND:
            self._every = max(self._every - 1, 1)

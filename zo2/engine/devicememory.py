"""What the working device's memory is used for beside weights: measured, not guessed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch

from zo2.engine.threadstacks import SmallStacks
from zo2.errors import DeviceMemoryError

# The context of a process that uses nothing but this engine stays below this, apart from page
# tables; more is another process's, which the driver does not tell apart.
LARGEST_CONTEXT = 5 << 28
# Bytes by which it may yet grow, as libraries load a kernel when it is first used: of the slack
# that placements leave.
LATER = 10_000_000
# Bytes that graphs take beside activations: the gaps between these, and what the driver keeps of
# each graph.
GRAPHS = 1 << 25
PAGE, PAGE_ENTRY = 4096, 8  # bytes of a page-locked page, and of its entry in the device's memory


def page_tables(page_locked: int) -> int:
    """Bytes of the device's memory that go with so many page-locked ones of the host's."""
    return page_locked * PAGE_ENTRY // PAGE


class Usage:
    """How much device memory passes need beside the weights' buffers.

    Args:
        device: the working device.
        bounded: whether there is a budget, in which case the context should take little.

    Attributes:
        activations: what to reckon with, in bytes: a guess before any pass, then the largest
            need that was seen.
        is_guessed: whether nothing was seen yet.
        page_locked: bytes of host memory that the engine has page-locked.
        peak: bytes allocated at most in the last `measured` context, beyond what was before it.
        outside: of the activations, what passes need outside blocks; until it was seen, all.
        waiting: what they hold when they wait for the first of several blocks.
    """

    FIRST_GUESS = 1 << 29
    _in_force: ClassVar[dict[torch.device, Usage]] = {}  # whose limit torch's allocator knows

    def __init__(self, device: torch.device, bounded: bool = False) -> None:
        self._device = device
        self._stacks = SmallStacks(device) if bounded else None
        self._budget: int | None = None
        self.is_guessed = True
        self.page_locked = 0
        self.activations = self.FIRST_GUESS if device.type == "cuda" else 0
        self.peak, self.outside, self.waiting = 0, self.activations, 0
        # in a `measured` context: what was allocated before it, and at most within blocks and
        # outside; whether passes are within; and whether it is to tell `outside` and `waiting`
        self._before, self._seen = 0, dict[bool, int]()
        self._within = self._tells = False

    def context(self) -> int:
        """Bytes that the CUDA context and the libraries' own workspaces take."""
        if self._device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        largest = LARGEST_CONTEXT + page_tables(self.page_locked)
        return min(max(total - free - reserved, 0), largest)

    def others(self, own: int, to_lock: int = 0) -> int:
        """Bytes of the context, and of tensors in this process that are not the engine's.

        Args:
            own: bytes of the engine's tensors on the device.
            to_lock: bytes of host memory that have yet to be page-locked.
        """
        if self._device.type != "cuda":
            return 0
        tensors = max(torch.cuda.memory_allocated(self._device) - own, 0)
        return self.context() + tensors + page_tables(to_lock)

    def of_graphs(self) -> int:
        """Bytes that graphs of passes through blocks need beside activations.

        They keep the memory of what one pass needs within, which is not free outside any more. Two
        passes wait, or more, of which that need counts what one holds.
        """
        kept = GRAPHS if self._device.type == "cuda" else 0
        return kept + self.outside - self.waiting // 2

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Set `peak` to what the context allocates, and what else is not known of it."""
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = _allocated(self._device)["current"]
        self._seen, self._within = {}, False
        self._tells |= self.is_guessed
        yield
        self._note_peak()
        self.peak = max(self._seen.values())
        if True in self._seen:
            self.outside, self._tells = self._seen[False], self.is_guessed

    def turn(self, within: bool) -> None:
        """In a `measured` context: passes go through blocks from now on, or no longer do."""
        if not self._tells or within == self._within:
            return
        self._note_peak()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._within = within
        if within:
            self.waiting = _allocated(self._device)["current"] - self._before

    def _note_peak(self) -> None:
        peak = _allocated(self._device)["peak"] - self._before
        self._seen[self._within] = max(peak, self._seen.get(self._within, 0))

    def limit(self, budget: int | None) -> None:
        """Let torch's allocator give cached memory back, or fail, rather than pass ``budget``.

        ``None`` takes the limit away.
        """
        self._budget = budget
        self._tell(budget)

    def _tell(self, budget: int | None) -> None:
        """What torch's allocator goes by from now on."""
        if self._device.type != "cuda":
            return
        total = torch.cuda.mem_get_info(self._device)[1]
        allowed = total if budget is None else budget - self.context() - LATER
        share = min(max(allowed / total, 0.0), 1.0)
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        self._in_force.pop(self._device, None)
        if budget is not None:
            self._in_force[self._device] = self

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Within it this limit is not in force."""
        self._let_go()
        try:
            yield
        finally:
            self.claim()

    def claim(self) -> None:
        """Let this limit, or none, be in force instead of another's: it is one for the process.

        And where there is a budget, the context takes less.
        """
        if self._stacks:
            self._stacks.ask()
        if self._in_force.get(self._device) is not (None if self._budget is None else self):
            self._tell(self._budget)

    def lift(self) -> None:
        """Take the limit away, if it is this one, until it is claimed again."""
        self._let_go()
        if self._stacks:
            self._stacks.ask_no_more()

    def _let_go(self) -> None:
        if self._in_force.get(self._device) is self:
            self._tell(None)

    def expect(self, activations: int) -> bool:
        """Reckon with at least so much; returns whether that is news."""
        if activations <= self.activations:
            return False
        # outside blocks it is larger, too; the next sweep tells by how much
        self.outside = self.outside * activations // max(self.activations, 1)
        self.activations, self._tells = activations, self._device.type == "cuda"
        return True

    def reckon_with(self, more: int) -> None:
        """Memory ran out although the need seemed to fit: it is larger by so many bytes."""
        self.is_guessed = False
        self.activations += more

    def learn(self) -> bool:
        """Reckon with the last measured peak from now on; returns whether that is news."""
        if not self.is_guessed:
            return self.expect(self.peak)
        self.is_guessed, self.activations = False, self.peak
        return True


def _allocated(device: torch.device) -> dict[str, int]:
    """Bytes of tensors, "current" and "peak". The functions for one of them flatten all that torch
    knows, for which a GPU would wait.
    """
    stats: dict[str, Any] = torch.cuda.memory_stats_as_nested_dict(device)
    found: dict[str, int] = stats["allocated_bytes"]["all"]
    return found


Result = TypeVar("Result")


def without_garbage(device: torch.device, work: Callable[[], Result]) -> Result:
    """What ``work()`` returns; should memory run out, it is done again if garbage held some.

    A prepared model that was let go is in cycles with its hooks: it stays until Python's garbage
    collector comes by, which knows nothing of the GPU's memory.
    """
    try:
        return work()
    except (torch.cuda.OutOfMemoryError, DeviceMemoryError):
        if not _collect_garbage(device):
            raise
    return work()


def _collect_garbage(device: torch.device) -> bool:
    """Whether that has freed any of the device's memory."""
    if device.type != "cuda":
        return False
    before = torch.cuda.memory_allocated(device)
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device) < before


@contextlib.contextmanager
def out_of_memory_explained(device: torch.device, advice: str) -> Iterator[None]:
    """Turn torch's error into one that says what is free, and ``advice``."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        cause = str(error).split(". ")[0]
        free, total = torch.cuda.mem_get_info(device)
        message = (
            f"The GPU ran out of memory ({cause}; {free / 2**30:.2f} of {total / 2**30:.2f} GiB "
            f"are free). {advice}"
        )
    else:
        return
    torch.cuda.empty_cache()
    raise DeviceMemoryError(message)

"""Ctrl-C waits until weights that are being updated in place are updated, and known to be.

Otherwise an interrupt could leave half of a unit's weights with an update that is still taken to be
pending, and applied to them once more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Python's handlers of these signals, while an engine works; a context manager.

    Attributes:
        held_up: a context manager, within which none is called; what came is handled at its end.
    """

    def __init__(self) -> None:
        self.held_up = _HeldUp()
        self._depth = 0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> None:
        self._depth += 1
        # only the main thread may set handlers, and is the only one that they interrupt
        if self._depth > 1 or threading.current_thread() is not threading.main_thread():
            return
        found = {number: signal.getsignal(number) for number in SIGNALS}
        self._handlers = {int(n): handler for n, handler in found.items() if callable(handler)}
        for number in self._handlers:
            signal.signal(number, self._handle)

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if not self._depth:
            while self._handlers:
                signal.signal(*self._handlers.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        handle = self._handlers[number]
        if self.held_up.depth:
            self.held_up.late.append(lambda: handle(number, frame))
        else:
            handle(number, frame)


class _HeldUp:
    def __init__(self) -> None:
        self.depth = 0
        self.late: list[Callable[[], Any]] = []

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1
        while self.late and not self.depth:
            self.late.pop(0)()

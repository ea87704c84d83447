"""The state that torch keeps per thread or process and that a pass may change while it runs.

Passes share one thread. A context manager opened inside a model's forward (autocast, no_grad,
an SDPA backend, a default device) would still be open when control moves to another pass, so
each pass's state is taken away with it and put back when it goes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import overrides

_AUTOCAST_DEVICES = ("cpu", "cuda")
_modes = overrides._get_current_function_mode_stack
_SDPA = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


class ThreadState(NamedTuple):
    """A snapshot: gradient and inference mode, autocast, SDPA backends, function modes, dtype."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]
    autocast_cache: bool
    sdpa: tuple[bool, ...]
    modes: tuple[Any, ...]
    dtype: torch.dtype


def capture() -> ThreadState:
    """The calling thread's present state; called twice whenever control moves, hence plain."""
    return ThreadState(
        grad=torch.is_grad_enabled(),
        inference=torch.is_inference_mode_enabled(),
        autocast=(
            (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
        ),
        autocast_cache=torch.is_autocast_cache_enabled(),
        sdpa=tuple([enabled() for enabled, _ in _SDPA]),
        modes=tuple(_modes()) if torch._C._len_torch_function_stack() else (),
        dtype=torch.get_default_dtype(),
    )


class Switcher:
    """Changes the thread's state; used as a context manager it ends as it began, in ``first``.

    Inference mode can only be entered through guards that restore what they found, so the
    guards are kept and dropped together at the end, before the first state is set again.
    """

    def __enter__(self) -> Switcher:
        self.first = self._now = capture()
        self._guards: list[Any] = []
        return self

    def __exit__(self, *exc: object) -> None:
        while self._guards:
            del self._guards[-1]
        self._set(self.first, capture())

    def leave(self) -> ThreadState:
        """Take the present state away, to be put back by `enter`."""
        self._now = capture()
        return self._now

    def enter(self, state: ThreadState) -> None:
        """Put ``state`` in force."""
        self._set(state, self._now)
        self._now = state

    def _set(self, state: ThreadState, now: ThreadState) -> None:
        if state == now:
            return
        if state.inference != torch.is_inference_mode_enabled():
            self._guards.append(torch._C._InferenceMode(state.inference))
        torch._C._set_grad_enabled(state.grad)
        for device, (enabled, dtype) in zip(_AUTOCAST_DEVICES, state.autocast, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(state.autocast_cache)
        for (_, enable), value in zip(_SDPA, state.sdpa, strict=True):
            enable(value)
        if state.modes != now.modes:
            for _ in now.modes:
                overrides._pop_mode()
            for mode in state.modes:
                overrides._push_mode(mode)
        torch.set_default_dtype(state.dtype)

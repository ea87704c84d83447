"""NVIDIA's driver, for the few things that torch has no call for."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_STACK_SIZE = ctypes.c_int(0)  # CU_LIMIT_STACK_SIZE
_NON_BLOCKING = ctypes.c_uint(1)  # CU_STREAM_NON_BLOCKING


def stack_limit(device: torch.device) -> int | None:
    """Bytes of each thread's stack on a CUDA device; ``None`` if that cannot be told."""
    size = ctypes.c_size_t()
    with _context(device) as driver:
        if driver is None or driver.cuCtxGetLimit(ctypes.byref(size), _STACK_SIZE):
            return None
    return size.value


def set_stack_limit(device: torch.device, nbytes: int) -> None:
    """Where the driver refuses (there may be no memory for larger stacks), the limit stays."""
    with _context(device) as driver:
        if driver is not None:
            driver.cuCtxSetLimit(_STACK_SIZE, ctypes.c_size_t(nbytes))


def new_stream(device: torch.device) -> int | None:
    """The address of a stream that does not wait for the default one; ``None`` if there is no
    driver, or it refuses.
    """
    stream = ctypes.c_void_p()
    with _context(device) as driver:
        if driver is None or driver.cuStreamCreate(ctypes.byref(stream), _NON_BLOCKING):
            return None
    return stream.value


@contextmanager
def _context(device: torch.device) -> Iterator[Any]:
    """The driver, with the device's context as the current one."""
    driver = _driver()
    if driver is None:
        yield None
        return
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the context, should there be none
        yield driver


@functools.cache
def _driver() -> Any:
    """``None`` where torch drives a GPU by another."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None

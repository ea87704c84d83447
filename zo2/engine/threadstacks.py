"""Memory that a CUDA context keeps for the stacks of the GPU's threads, and models do not need.

It is 1 KiB for each thread that the GPU can hold: 0.28 GB on an H200. A kernel whose need its
compiler knows is given that at launch, whatever the limit (cuCtxSetLimit, CU_LIMIT_STACK_SIZE, in
NVIDIA's driver API). Only one that recurs, or calls functions by pointers, has to do with the limit
as it is, and ends in an error if it cannot. Models have no such kernels.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections import Counter
from typing import Any

import torch

DEFAULT, SMALL = 1024, 128  # bytes for each thread
_LIMIT = ctypes.c_int(0)  # CU_LIMIT_STACK_SIZE


class SmallStacks:
    """Asks for small stacks of a device's threads, which are small while anybody does.

    A limit that is not CUDA's default is somebody's choice, and stays.

    Args:
        device: any; only CUDA devices have such stacks.
    """

    _asking: Counter[torch.device] = Counter()
    _made_small: set[torch.device] = set()

    def __init__(self, device: torch.device) -> None:
        self._device, self._asks = device, False

    def ask(self) -> None:
        """From now on."""
        if self._asks or self._device.type != "cuda":
            return
        self._asks = True
        self._asking[self._device] += 1
        if self._device not in self._made_small and _limit(self._device) == DEFAULT:
            _set_limit(self._device, SMALL)
            self._made_small.add(self._device)

    def ask_no_more(self) -> None:
        """Until `ask` is called again."""
        if not self._asks:
            return
        self._asks = False
        self._asking[self._device] -= 1
        if self._device in self._made_small and not self._asking[self._device]:
            self._made_small.remove(self._device)
            if _limit(self._device) == SMALL:
                _set_limit(self._device, DEFAULT)


def _limit(device: torch.device) -> int | None:
    """Bytes of each thread's stack; ``None`` if that cannot be told."""
    size = ctypes.c_size_t()
    driver = _driver()
    if driver is None:
        return None
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes the device's context, should there be none
        return None if driver.cuCtxGetLimit(ctypes.byref(size), _LIMIT) else size.value


def _set_limit(device: torch.device, nbytes: int) -> None:
    """Where the driver refuses (there may be no memory for larger stacks), the limit stays."""
    with torch.cuda.device(device):
        _driver().cuCtxSetLimit(_LIMIT, ctypes.c_size_t(nbytes))


@functools.cache
def _driver() -> Any:
    """NVIDIA's, or ``None`` where torch drives a GPU by another."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None

"""Memory that a CUDA context keeps for the stacks of the GPU's threads, and models do not need.

It is 1 KiB for each thread that the GPU can hold: 0.28 GB on an H200. A kernel whose need its
compiler knows is given that at launch, whatever the limit (cuCtxSetLimit, CU_LIMIT_STACK_SIZE, in
NVIDIA's driver API). Only one that recurs, or calls functions by pointers, has to do with the limit
as it is, and ends in an error if it cannot. Models have no such kernels.
"""

from __future__ import annotations

from collections import Counter

import torch

from zo2.engine.driver import set_stack_limit, stack_limit

DEFAULT, SMALL = 1024, 128  # bytes for each thread


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
        if self._device not in self._made_small and stack_limit(self._device) == DEFAULT:
            set_stack_limit(self._device, SMALL)
            self._made_small.add(self._device)

    def ask_no_more(self) -> None:
        """Until `ask` is called again."""
        if not self._asks:
            return
        self._asks = False
        self._asking[self._device] -= 1
        if self._device in self._made_small and not self._asking[self._device]:
            self._made_small.remove(self._device)
            if stack_limit(self._device) == SMALL:
                set_stack_limit(self._device, DEFAULT)

"""The engine's CUDA streams: few, since each takes some of the GPU's memory.

torch makes 32 of them at once the first time that it is asked for one, 70 MiB on an H200. These
are made by the driver, each when it is first needed, and stay until the process ends: engines
share them, as torch's are shared, and the order of all work is by events.
"""

from __future__ import annotations

import functools

import torch

from zo2.engine import driver


@functools.cache
def stream(device: torch.device, use: str) -> torch.cuda.Stream:
    """The one stream of a CUDA device for such a use.

    Args:
        device: with its index.
        use: streams of different names are different ones.
    """
    address = driver.new_stream(device)
    if address is None:
        return torch.cuda.Stream(device)
    return torch.cuda.ExternalStream(address, device)

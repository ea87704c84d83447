"""`seed_everything`, under the module name that published ZO2 code imports it from."""

from __future__ import annotations

import os
import random


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (if installed) and torch, on every device.

    A model prepared afterwards without a ``seed`` of its own repeats the same run.
    """
    import torch

    os.environ["PYTHONHASHSEED"] = str(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(seed % 2**32)

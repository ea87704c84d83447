"""One thread per process: the models are tiny, and pytest-xdist runs as many as there are cores."""

from __future__ import annotations

import os
import sys

import pytest

# before torch is imported; some tests of the tools run where there is no torch
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """Passes run without gradients and pause half way: none may leave them off for what follows."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("gradients were left switched off")

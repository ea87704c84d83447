"""One thread per process: the models are tiny, and pytest-xdist runs as many as there are cores."""

from __future__ import annotations

import os

# before torch is imported; some tests of the tools run where there is no torch
os.environ["OMP_NUM_THREADS"] = "1"

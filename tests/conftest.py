"""One thread per process: the models are tiny, and pytest-xdist runs as many as there are cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

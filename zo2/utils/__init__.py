"""Small helpers for scripts."""

from __future__ import annotations

from zo2.utils.utils import seed_everything

__all__ = ["seed_everything"]

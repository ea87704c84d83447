"""Trainers: `ZOTrainer` on transformers' Trainer, `ZOSFTTrainer` on trl's SFTTrainer.

>>> class ZOSeq2SeqTrainer(ZOMixin, transformers.Seq2SeqTrainer): pass  # and others likewise
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zo2.trainer.hf_transformers import ZOTrainer
    from zo2.trainer.hf_trl import ZOSFTTrainer
    from zo2.trainer.mixin import ZOMixin

__all__ = ["ZOMixin", "ZOSFTTrainer", "ZOTrainer"]

_HOMES = {
    "ZOMixin": "zo2.trainer.mixin",
    "ZOTrainer": "zo2.trainer.hf_transformers",
    "ZOSFTTrainer": "zo2.trainer.hf_trl",
}


def __getattr__(name: str) -> Any:
    """Import on first use: trl need not be there for the other trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zo2.trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

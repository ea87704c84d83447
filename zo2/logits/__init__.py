"""Logits that are computed where they are read: a training pass never holds them all."""

from zo2.logits.head import Head
from zo2.logits.standin import Logits

__all__ = ["Head", "Logits"]

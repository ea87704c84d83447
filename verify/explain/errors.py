"""What this package raises when it cannot answer: one sentence for the user."""

from __future__ import annotations


class ExplainError(Exception):
    """Names the cause and the next step; the command line prints it and ends with code 2."""

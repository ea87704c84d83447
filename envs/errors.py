"""What this package raises for a user's mistake: one line, with the file and the place in it."""

from __future__ import annotations


class EnvsError(Exception):
    """The sentence is meant for the user: where, what is wrong, and what to do."""

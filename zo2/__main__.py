"""``python -m zo2`` is the command ``zo2``."""

from zo2.cli import app

if __name__ == "__main__":
    app(prog_name="zo2")

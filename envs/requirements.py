"""What a lock answers: the pins of its row, and what the package itself asks for."""

from __future__ import annotations

from pathlib import Path

from envs import matrix
from verify.rows import Row

PYPROJECT = matrix.ROOT / "pyproject.toml"

# what is used with every row: compiled noise, GGUF files, and the tests
_EXTRAS = ("fast", "gguf", "test")
# Triton before 3.2 imports setuptools without saying so; 77 builds wheels by itself
_SETUPTOOLS = "setuptools>=77"


def of_row(row: Row) -> list[str]:
    """The row's pins as requirements."""
    return [f"{package}=={version}" for package, version in row.pins.items()]


def of_package(pyproject: Path = PYPROJECT) -> list[str]:
    """The requirements of the package with its extras."""
    project = matrix.read_toml(pyproject)["project"]
    optional = project["optional-dependencies"]
    found = [*project["dependencies"], *(r for extra in _EXTRAS for r in optional[extra])]
    return sorted({*found, _SETUPTOOLS})

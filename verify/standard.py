"""Whether files on the path hide modules of Python's own that verify needs.

A ``queue.py`` in the directory where verify is started is imported in place of Python's. Only
modules that are always loaded are imported here, so that this one cannot meet such a file.
"""

import os
import sys
from importlib.machinery import FrozenImporter, PathFinder

_LIBRARY = os.path.dirname(os.__file__)


def first(path: list[str]) -> list[str]:
    """The path with Python's own modules before all others."""
    begins = _begins(path)
    return path[begins:] + path[:begins]


def hidden(path: list[str], names: set[str]) -> str:
    """What to say of the first file on the path that hides one of these modules; "" if none."""
    begins = _begins(path)
    own = {name for name in names & sys.stdlib_module_names if not _is_built_in(name)}
    for entry in path[:begins]:
        for name in sorted(own):
            spec = PathFinder.find_spec(name, [entry])
            if spec is not None and spec.origin is not None:
                where = os.environ.get("PYTHONPATH", "").split(os.pathsep)
                other = "unset PYTHONPATH" if entry in where else "start in another directory"
                return f"{spec.origin} hides Python's own module {name}: rename it, or {other}."
    return ""


def _begins(path: list[str]) -> int:
    return path.index(_LIBRARY) if _LIBRARY in path else 0


def _is_built_in(name: str) -> bool:
    return name in sys.builtin_module_names or FrozenImporter.find_spec(name) is not None

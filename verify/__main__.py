"""``python -m verify``."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before anything newer is met
    sys.exit("verify: Python 3.10 or newer is needed: uv venv --python 3.11 .venv")

try:
    from verify.cli import main
except Exception as error:  # nothing but Python's own modules was imported
    print(
        f"verify: it cannot start, since a module of Python's own is broken or hidden: {error!r}. "
        "Start from another directory, unset PYTHONPATH, or use another Python.",
        file=sys.stderr,
    )
    sys.exit(2)

sys.exit(main())

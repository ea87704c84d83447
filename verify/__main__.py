"""``python -m verify``."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before anything newer is met
    sys.exit("verify: Python 3.10 or newer is needed: uv venv --python 3.11 .venv")

from verify import standard

given = sys.path[:]
try:
    sys.path[:] = standard.first(given)
    from importlib import import_module

    from verify.catalogue import CHECKS
    from verify.cli import main

    for module in {check.probe for check in CHECKS.values()}:
        import_module(f"verify.probes.{module}")  # here only to see what of Python's they need
except Exception as error:  # nothing but Python's own modules was imported
    print(
        f"verify: it cannot start, since a module of Python's own is broken: {error!r}. "
        "Use another Python.",
        file=sys.stderr,
    )
    sys.exit(2)
finally:
    sys.path[:] = given

if found := standard.hidden(given, {name.partition(".")[0] for name in sys.modules}):
    print(f"verify: {found}", file=sys.stderr)
    sys.exit(2)

sys.exit(main())

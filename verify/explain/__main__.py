"""``python -m verify.explain`` is ``python -m verify explain``."""

import sys

from verify.explain.cli import main

sys.exit(main(sys.argv[1:]))

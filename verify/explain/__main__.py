"""``python -m verify.explain`` is ``python -m verify explain``."""

import runpy
import sys

sys.argv.insert(1, "explain")
runpy.run_module("verify", run_name="__main__")

"""Why a set of requirements does not resolve, and the smallest change that makes it.

Read `answer.explain` first; the parts, from the inside out:

- `requirements`: what is asked for, with file and line; `pyproject` and `installed` are two more
  places to read it from.
- `oracle`: the one question "does this set resolve?"; `uv` answers it, `runtime` adds what
  metadata does not say.
- `conflicts`: all minimal conflicts. `corrections`: the smallest changes. Both are algorithms over
  any oracle.
- `neighbourhood`: how far a version may move.
- `edges`: which two demands meet in a conflict, and who brought them in.
- `report`, `apply`, `cli`: words, files, command line. What is said goes through one place in
  `cli`, which lets no password out.
"""

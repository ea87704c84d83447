"""A row's conda environment, as the text of an ``environment.yml``.

conda brings Python and the C compiler that Triton needs; every Python package is the lock's
version from the package index, because torch's CUDA builds there are the ones that are tested.
"""

from __future__ import annotations

import textwrap

from envs.lockfile import Lock
from verify.rows import Row

_TEXT = """\
# Generated from envs/matrix.toml and the row's lock by `nox -s lock`; do not edit.
#
# Row {row}, Linux x86_64.
{why}
#
#   conda env create -f envs/{row}/environment.yml
#   conda activate zo2-{row}
#   pip install --no-deps .          # zo2 itself, from a clone
#
# conda's pip section cannot hold hashes. To have them enforced, take this environment without its
# pip section and run: pip install --require-hashes -r lockfiles/{lock}
name: zo2-{row}
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={python}.*
  - pip
  - c-compiler
  - pip:
{packages}
"""


def environment(row: Row, lock: Lock) -> str:
    """The text of ``environment.yml`` for ``row``, with the versions of ``lock``."""
    return _TEXT.format(
        row=row.name,
        why=textwrap.fill(row.why, 100, initial_indent="# ", subsequent_indent="# "),
        lock=row.lock_name(lock.python),
        python=lock.python,
        packages="\n".join(f"      - {name}=={version}" for name, version in lock.versions.items()),
    )

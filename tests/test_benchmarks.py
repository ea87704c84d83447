"""The benchmarks can be started wherever the tests run; what they measure needs a GPU or hours."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize("name", [one.name for one in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_benchmark_finds_what_it_uses(name):
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("zo2", "verify", "benchmarks"):
            raise
        pytest.skip(f"{error.name} is not installed")

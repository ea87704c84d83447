"""The real sets under ``../shared/conflicts``, on the real index, against their known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.explain.conftest import Run, first_change, runner
from verify.explain.errors import ExplainError
from verify.explain.requirements import Requirement
from verify.explain.uv import Target, Uv

SETS = Path(__file__).parents[3] / "shared" / "conflicts"

pytestmark = pytest.mark.skipif(not SETS.is_dir(), reason="the real sets are not here")


@pytest.fixture(scope="module")
def reachable(needs_uv: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        uv = Uv(Target("3.11", "linux"), tmp_path_factory.mktemp("answers"))
        uv([frozenset({Requirement("packaging")})])
    except ExplainError as error:
        pytest.skip(f"the package index is not there: {error}")


@pytest.fixture
def explain(
    reachable: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("answers")))
    return runner(capsys)


def answer(run: Run, name: str, *more: str) -> tuple[list[set[str]], str]:
    """The conflicts, by package, and the whole answer; as of the day of the known answers."""
    code, said, complaint = run("-r", str(SETS / name), "--json", "--as-of", "2026-11-21", *more)
    assert code == 1, complaint
    found = json.loads(said)["conflicts"]
    return [{r["name"] for r in conflict["requirements"]} for conflict in found], said


def test_upstream(explain: Run) -> None:
    conflicts, said = answer(explain, "zo2-upstream.txt", "--keep", "transformers")
    assert conflicts == [{"transformers", "huggingface-hub"}]
    reason = json.loads(said)["conflicts"][0]["reason"]
    assert reason.startswith(
        "transformers 4.51.3 needs huggingface-hub>=0.30.0,<1.0; you pinned 0.24.5."
    )
    assert first_change(said) == {"huggingface-hub": "huggingface-hub==0.30.0"}


def test_llama31(explain: Run) -> None:
    conflicts, said = answer(explain, "llama31.txt")
    assert conflicts == [{"transformers", "tokenizers"}]
    assert first_change(said) == {"tokenizers": "tokenizers==0.20.3"}
    moves = [m for change in json.loads(said)["changes"] for m in change["moves"]]
    assert all(m["version"] >= "4.46" for m in moves if m["from"]["name"] == "transformers")


def test_two_conflicts(explain: Run) -> None:
    conflicts, said = answer(explain, "two-conflicts.txt")
    assert conflicts == [{"transformers", "huggingface-hub"}, {"transformers", "trl"}]
    assert first_change(said) == {"transformers": "transformers==4.46.3"}
    _, said = answer(explain, "two-conflicts.txt", "--keep", "transformers")
    assert first_change(said) == {
        "huggingface-hub": "huggingface-hub==0.30.0",
        "trl": "trl==0.13.0",
    }


def test_looks_fine(explain: Run) -> None:
    conflicts, said = answer(explain, "looks-fine.txt")
    assert conflicts == [{"torch", "transformers"}]
    assert json.loads(said)["conflicts"][0]["kind"] == "runtime"
    assert first_change(said) == {"torch": "torch==2.6.0"}

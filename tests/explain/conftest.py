from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explain import index
from verify.explain.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def needs_uv() -> None:
    beside = Path(sys.executable).with_name("uv")
    if not (shutil.which("uv") or beside.exists()):
        pytest.skip("uv is not installed (pip install uv)")


@pytest.fixture(scope="session")
def recorded(needs_uv: None) -> Iterator[str]:
    with index.serve(index.RECORDED) as address:
        yield address


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def use_index(
    monkeypatch: pytest.MonkeyPatch, uv_cache: Path, tmp_path: Path
) -> Callable[[str], None]:
    """Make uv ask one index, whatever is set outside, and keep answers in folders of the test."""

    def use(address: str) -> None:
        for name in ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        monkeypatch.setenv("UV_CACHE_DIR", str(uv_cache))
        monkeypatch.setenv("UV_NO_CONFIG", "1")
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))
        monkeypatch.chdir(tmp_path)

    return use


@pytest.fixture
def explain(
    recorded: str, use_index: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command on the recorded index: (exit code, what it says, what it complains of)."""
    use_index(recorded)
    return runner(capsys)


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        target = [] if "--python" in arguments else ["--python", "3.11"]
        target += [] if "--platform" in arguments else ["--platform", "linux"]
        code = main([*target, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def first_change(answer: str) -> dict[str, str]:
    """The moves of the first change in a JSON answer, by package."""
    changes: list[Any] = json.loads(answer)["changes"]
    return {m["from"]["name"]: m["to"] for m in changes[0]["moves"]}

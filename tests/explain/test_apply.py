from __future__ import annotations

import os
from pathlib import Path

import pytest

from verify.explain.apply import edits, write
from verify.explain.errors import ExplainError
from verify.explain.requirements import Requirement, read_file


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def move(name: str, changes: dict[str, str]) -> dict[Requirement, Requirement]:
    found = {r.name: r for r in read_file(name).requirements}
    return {found[n]: found[n].with_specifier(s) for n, s in changes.items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_everything_but_the_version_stays(encoding: str, end: str) -> None:
    lines = ["# é", "", "a==1  # keep a==1", "b[x] >= 2 ; python_version>'3'", "a-b==1", "c==3"]
    text = end.join(lines)  # without an end at the end
    Path("r.txt").write_bytes(text.encode(encoding))
    write(edits(move("r.txt", {"a": "==1.5", "b": ">=1", "c": "==4"})))
    lines[2], lines[3], lines[5] = "a==1.5  # keep a==1", "b[x] >=1 ; python_version>'3'", "c==4"
    assert Path("r.txt").read_bytes() == end.join(lines).encode(encoding)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs links")
def test_links_and_modes_stay() -> None:
    Path("real.txt").write_text("a==1\n")
    Path("real.txt").chmod(0o640)
    Path("r.txt").symlink_to("real.txt")
    write(edits(move("r.txt", {"a": "==2"})))
    assert Path("r.txt").is_symlink()
    assert Path("real.txt").read_text() == "a==2\n"
    assert Path("real.txt").stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in Path().iterdir()) == ["r.txt", "real.txt"], "nothing is left over"


def test_several_files_and_the_diff() -> None:
    Path("base.txt").write_text("b==1\n")
    Path("r.txt").write_text("-r base.txt\na==1\n")
    changes = edits(move("r.txt", {"a": "==2", "b": "==2"}))
    assert [change.name for change in changes] == ["r.txt", "base.txt"]
    assert changes[1].diff == ["--- base.txt", "+++ base.txt", "@@ -1 +1 @@", "-b==1", "+b==2"]


def test_strings_on_one_line_of_a_pyproject() -> None:
    pytest.importorskip("tomllib", reason="reads TOML from Python 3.11 on")
    text = '[project]\ndependencies = ["a==1", "a-b==1", \'b==1\']  # "a==1"\n'
    Path("pyproject.toml").write_text(text)
    write(edits(move("pyproject.toml", {"a-b": "==2", "b": "==3"})))
    expected = '[project]\ndependencies = ["a==1", "a-b==2", \'b==3\']  # "a==1"\n'
    assert Path("pyproject.toml").read_text() == expected


def test_hashes_and_changed_files_are_not_touched() -> None:
    Path("r.txt").write_text("a==1 --hash=sha256:00\nb==1\n")
    hashed, plain = move("r.txt", {"a": "==2"}), move("r.txt", {"b": "==2"})
    with pytest.raises(ExplainError, match=r"r\.txt:1: the hashes"):
        edits(hashed)
    Path("r.txt").write_text("something else\n")
    with pytest.raises(ExplainError, match=r"r\.txt:2: 'b==1' is not written there"):
        edits(plain)


def test_what_is_in_no_file_is_left_out() -> None:
    requirement = Requirement("a==1")
    assert edits({requirement: requirement.with_specifier("==2")}) == []

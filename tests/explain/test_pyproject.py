from __future__ import annotations

import sys
from pathlib import Path

import pytest

from verify.explain.errors import ExplainError
from verify.explain.requirements import read_file

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML from 3.11 on")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file(text: str) -> str:
    Path("pyproject.toml").write_text(text)
    return "pyproject.toml"


def read(text: str, *extras: str) -> list[tuple[str, int]]:
    return [(r.text, r.origin.line) for r in read_file(file(text), extras).requirements]


def test_a_pyproject_and_its_extras() -> None:
    text = (
        "[project]\ndependencies = [\n  \"a==1\",  # first\n  'b>=2',\n]\n"
        '[project.optional-dependencies]\nMore = ["c<3"]\n'
    )
    name = file(text)
    assert [(r.text, r.origin.line) for r in read_file(name).requirements] == [
        ("a==1", 3), ("b>=2", 4),
    ]  # fmt: skip
    found = read_file(name, extras=["more"]).requirements
    assert (found[-1].text, found[-1].origin.line) == ("c<3", 7)
    with pytest.raises(ExplainError, match=r"no extra 'less'. It has: more"):
        read_file(name, extras=["less"])
    with pytest.raises(ExplainError, match="not valid TOML"):
        read_file(file("[project"))
    with pytest.raises(ExplainError, match="Poetry's own tables are not read"):
        read_file(file("[tool.poetry]\n"))


def test_a_project_that_names_itself_means_its_own_extras() -> None:
    text = """\
[project]
name = "My.Package"
dependencies = ["a==1"]
[project.optional-dependencies]
all = ["b==1", "my-package[one, two]"]
one = ["c==1", "my_package[all]"]
two = ["d==1"]
old = ["my-package[mixed] ; python_version < '3.12'"]
mixed = ["e==1 ; sys_platform == 'linux'", "f==1"]
lost = ["my-package[nothing]"]
"""
    assert read(text, "all") == [("a==1", 3), ("b==1", 5), ("c==1", 6), ("d==1", 7)]
    under = 'python_version < "3.12"'
    assert read(text, "old") == [
        ("a==1", 3),
        (f"e==1 ; (sys_platform == 'linux') and (({under}))", 0),
        (f"f==1 ; ({under})", 0),
    ]
    with pytest.raises(ExplainError, match=r"has no extra 'nothing'\. It has: all, one"):
        read(text, "lost")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('project = ["x"]', "project must be a table"),
        ("tool = 3", "has no \\[project\\] table"),
        ('[project]\ndependencies = "requests"', "dependencies must be a list of strings"),
        ("[project]\ndependencies = [1]", "1 is not a requirement"),
        ('[project]\noptional-dependencies = ["x"]', "optional-dependencies must be a table"),
        ('[project]\ndynamic = ["dependencies"]', "dependencies is dynamic"),
        ("[project]\nrequires-python = 3", "requires-python = 3 means nothing"),
        ('[project]\nrequires-python = "three"', "requires-python = 'three' means nothing"),
    ],
)
def test_what_says_nothing_is_told(text: str, told: str) -> None:
    with pytest.raises(ExplainError, match=rf"^pyproject\.toml.*{told}"):
        read(text)


def test_dynamic_extras_matter_where_one_is_asked_for() -> None:
    text = '[project]\ndependencies = ["a==1"]\ndynamic = ["version", "optional-dependencies"]\n'
    assert read(text) == [("a==1", 2)]
    with pytest.raises(ExplainError, match="optional-dependencies is dynamic"):
        read(text, "dev")

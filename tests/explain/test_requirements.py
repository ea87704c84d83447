from __future__ import annotations

import os
from pathlib import Path

import pytest

from verify.explain.errors import ExplainError
from verify.explain.requirements import Origin, from_names, parse, read_file


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file(text: str | bytes, name: str = "r.txt") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(text: str | bytes) -> list[tuple[str, str]]:
    return [(str(r.origin), r.text) for r in read_file(file(text)).requirements]


def test_comments_blank_lines_and_continuations_keep_line_numbers() -> None:
    text = "# torch\n\na==1  # why\nb \\\n  >=2\n\nc#not-a-comment==1\n"
    with pytest.raises(ExplainError, match=r"r\.txt:7: 'c#not-a-comment==1' is not a requirement"):
        read(text)
    assert read(text.replace("c#", "c  #")) == [
        ("r.txt:3", "a==1"), ("r.txt:4", "b   >=2"), ("r.txt:7", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_windows_files(encoding: str) -> None:
    assert read("a==1\r\nb==2\r\n".encode(encoding)) == [("r.txt:1", "a==1"), ("r.txt:2", "b==2")]


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(ExplainError, match=r"r\.txt: not a text file"):
        read(b"PK\x03\x04\xff\xfe\x00")


def test_nested_files_and_constraints_are_relative_to_the_file() -> None:
    file("-r base.txt\n-c limits/c.txt\na==1\n", "sub/top.txt")
    file("-r top.txt\nb==2\n", "sub/base.txt")  # a circle
    file("c<3\n", "sub/limits/c.txt")
    found = read_file("sub/top.txt").requirements
    assert [(r.text, str(r.origin), r.constraint) for r in found] == [
        ("b==2", os.path.join("sub", "base.txt:2"), False),
        ("c<3", os.path.join("sub", "limits", "c.txt:1"), True),
        ("a==1", os.path.join("sub", "top.txt:3"), False),
    ]


def test_options_go_to_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    Path("wheels").mkdir()
    text = (
        "--index-url=https://${TOKEN}@example.org/simple\n--extra-index-url https://e.org/s\n"
        "-f wheels\n--pre\n--no-binary x,y\n--only-binary=:all:\n--require-hashes\nx==1\n"
    )
    found = read_file(file(text))
    assert found.options == (
        "--default-index", "https://secret@example.org/simple", "--index", "https://e.org/s",
        "--find-links", str(Path("wheels").resolve()), "--no-binary", "x", "--no-binary", "y",
    )  # fmt: skip
    assert found.prerelease


def test_several_options_on_a_line() -> None:
    found = read_file(file("--extra-index-url https://e.org/s --pre -i=https://f.org/s\na==1\n"))
    assert found.options == ("--index", "https://e.org/s", "--default-index", "https://f.org/s")
    assert found.prerelease
    with pytest.raises(ExplainError, match=r"r\.txt:1: .* lacks the value of --index-url"):
        read("--index-url --pre\n")


def test_a_comment_may_name_the_encoding() -> None:
    text = "# -*- coding: latin-1 -*-\na==1  # café\n"
    assert read(text.encode("latin-1")) == [("r.txt:2", "a==1")]
    with pytest.raises(ExplainError, match=r"r\.txt: there is no encoding 'klingon'"):
        read(text.replace("latin-1", "klingon"))


def test_values_of_variables_are_asked_for_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "S3cret")
    named, nameless = read_file(
        file("a @ https://e.org/${WORD}/a.whl\nhttps://e.org/${WORD}/b.whl\n")
    ).requirements
    assert named.text == "a @ https://e.org/S3cret/a.whl"
    assert nameless.text == "https://e.org/S3cret/b.whl"
    for shown in (str(named), str(nameless), nameless.name):
        assert "S3cret" not in shown
    for text in ("--frob ${WORD}", "a @ https://e.org/${WORD}/a 1.whl", "-r https://${WORD}/r"):
        with pytest.raises(ExplainError) as error:
            read(text)
        assert "${WORD}" in str(error.value)
        assert "S3cret" not in str(error.value)


def test_a_long_file_is_read_whole() -> None:
    """Where reading took time by the square of the length, this took minutes."""
    name = file("".join(f"package-{n}==1.{n}\n" for n in range(20_000)))
    found = read_file(name).requirements
    assert [r.origin.line for r in found] == list(range(1, 20_001))


def test_hashes_are_taken_off_and_remembered() -> None:
    (found,) = read_file(file("a==1 \\\n  --hash=sha256:00 \\\n  --hash=sha256:11\n")).requirements
    assert (found.text, found.hashes) == ("a==1", True)


def test_markers_extras_and_addresses() -> None:
    marker = parse('a[x, y]>=1,<2 ; python_version < "3.12"', Origin("r.txt", 1))
    assert (marker.name, marker.movable) == ("a", True)
    assert marker.with_specifier("==3").text == 'a[x, y]==3 ; python_version < "3.12"'
    address = parse("A_b @ https://example.org/x.whl", Origin("r.txt", 1))
    assert (address.name, address.movable) == ("a-b", False)
    editable = parse("-e ./here[extra]", Origin("sub/r.txt", 1))
    assert editable.text == f"-e {Path('here').resolve()}[extra]", "below the working directory"
    assert not editable.movable
    assert not parse("git+https://example.org/x.git", Origin("r.txt", 1)).movable


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a=1.2", "a==1.2"),
        ("a 1.2", "a==1.2"),
        ("a=1.2=py311_0", "a==1.2"),
        ("a==", None),
        ("==1", None),
        ("a==1 b==2", None),
        ("--frobnicate", None),
        ("a>=1 ; python_versio < '3'", None),
    ],
)
def test_what_means_nothing_is_told_with_file_and_line(text: str, meant: str | None) -> None:
    with pytest.raises(ExplainError, match=r"r\.txt:2: ") as error:
        read(f"x==1\n{text}\n")
    assert (f"Did you mean {meant}?" in str(error.value)) == (meant is not None)


def test_files_that_are_not_there_or_not_for_this() -> None:
    with pytest.raises(ExplainError, match=r"^no\.txt cannot be read"):
        read_file("no.txt")
    with pytest.raises(ExplainError, match=r"r\.txt:1: no\.txt cannot be read"):
        read("-r no.txt\n")
    with pytest.raises(ExplainError, match="is a folder"):
        read_file(".")
    with pytest.raises(ExplainError, match="is not a requirements file"):
        read_file(file("", "environment.yml"))
    assert read("# nothing\n\n") == []


def test_names_on_the_command_line() -> None:
    (found,) = from_names(["a==1"]).requirements
    assert (str(found.origin), found.pinned is not None) == ("command line", True)
    with pytest.raises(ExplainError, match="command line: 'a=1' is not a requirement"):
        from_names(["a=1"])

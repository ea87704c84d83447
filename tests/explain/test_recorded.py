"""The whole command with a real uv, on an index of recorded releases."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.explain import index
from tests.explain.conftest import Run, first_change, runner

UPSTREAM = """\
transformers==4.51.3
huggingface-hub==0.24.5
accelerate==1.6.0
datasets==3.5.1
tokenizers==0.21.1
safetensors==0.5.2
trl==0.17.0
numpy==1.26.4
"""
LLAMA = """\
torch==2.4.0
transformers==4.46.3
accelerate==1.2.1
peft==0.13.2
bitsandbytes==0.45.0
datasets==3.2.0
tokenizers==0.21.0
trl==0.12.2
"""
TWO = """\
transformers==4.51.3
huggingface-hub==0.24.5
trl==0.12.2
accelerate==1.2.1
peft==0.13.2
datasets==3.2.0
"""


def written(text: str, name: str = "r.txt") -> str:
    Path(name).write_bytes(text.encode())
    return name


def conflicts(answer: str) -> list[set[str]]:
    return [{r["name"] for r in c["requirements"]} for c in json.loads(answer)["conflicts"]]


def changes(answer: str) -> list[list[str]]:
    return [[m["to"] for m in c["moves"]] for c in json.loads(answer)["changes"]]


def test_one_conflict_in_words(explain: Run) -> None:
    code, said, _ = explain("-r", written(UPSTREAM), "--keep", "transformers")
    assert code == 1
    assert "transformers 4.51.3 needs huggingface-hub>=0.30.0,<1.0; you pinned 0.24.5." in said
    assert "huggingface-hub==0.30.0  # was 0.24.5, r.txt:2" in said
    assert "    -huggingface-hub==0.24.5\n    +huggingface-hub==0.30.0\n" in said


def test_innocent_pins_stay_and_no_fix_wanders_off(explain: Run) -> None:
    code, said, _ = explain("-r", written(LLAMA), "--json")
    assert code == 1
    assert conflicts(said) == [{"transformers", "tokenizers"}]
    # neither the release candidate of tokenizers nor transformers 4.17.0, which says so little
    # of tokenizers that it resolves; and transformers cannot rise without trl
    assert changes(said) == [["tokenizers==0.20.3"], ["transformers==4.47.0", "trl==0.13.0"]]


def test_all_conflicts_and_the_change_that_mends_both(explain: Run) -> None:
    code, said, _ = explain("-r", written(TWO), "--json")
    assert code == 1
    assert conflicts(said) == [{"transformers", "huggingface-hub"}, {"transformers", "trl"}]
    assert first_change(said) == {"transformers": "transformers==4.46.3"}
    code, said, _ = explain("-r", "r.txt", "--json", "--keep", "transformers")
    # trl 0.12.1 resolves too: it was published before anybody knew what 0.12.2 says
    assert changes(said) == [["huggingface-hub==0.30.0", "trl==0.13.0"]]


def test_what_resolves_but_cannot_run_is_a_conflict(explain: Run) -> None:
    code, said, _ = explain("torch==2.4.0", "transformers==5.23.0")
    assert code == 1
    assert "transformers 5.23.0 needs torch>=2.6; you pinned 2.4.0." in said
    assert "No metadata says so" in said
    code, said, _ = explain("torch==2.4.0", "transformers==5.23.0", "--json")
    assert changes(said) == [["torch==2.6.0"], ["transformers==5.14.1"]]


def test_every_proposal_resolves_and_runs(explain: Run) -> None:
    """Each change, applied, is accepted by the command itself."""
    for text in (UPSTREAM, LLAMA, TWO, "torch==2.4.0\ntransformers==5.23.0\n"):
        _, said, _ = explain("-r", written(text), "--json")
        count = len(changes(said))
        assert count
        for number in range(1, count + 1):
            assert explain("-r", written(text), "--apply", str(number))[0] == 0
            assert explain("-r", "r.txt")[0] == 0


def test_a_change_is_written_where_it_was_read(
    explain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("base.txt").write_bytes(b"# shared\r\nhuggingface-hub==0.24.5  # old\r\n")
    name = written("-r base.txt\ntransformers==4.51.3\n")
    code, said, told = explain("-r", name, "--keep", "transformers", "--apply", "--json")
    assert (code, told) == (0, "Change 1 is written to base.txt.\n")
    assert first_change(said) == {"huggingface-hub": "huggingface-hub==0.30.0"}
    assert Path("base.txt").read_bytes() == b"# shared\r\nhuggingface-hub==0.30.0  # old\r\n"
    assert Path(name).read_text() == "-r base.txt\ntransformers==4.51.3\n"

    code, _, told = explain("trl==0.12.2", "transformers==4.51.3", "--apply")
    assert (code, "nothing was written" in told) == (2, True)
    standard_input = io.TextIOWrapper(io.BytesIO(UPSTREAM.encode()))
    monkeypatch.setattr("sys.stdin", standard_input)
    code, said, _ = explain("-r", "-")
    assert (code, "(standard input:2)" in said) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Nothing is asked for"),
        (["r.txt"], "There is no file r.txt; files are named with -r."),
        (["numpy", "--keep", "torch"], "--keep torch: that is not among what is asked for."),
        (["numpy", "--python", "three"], "--python three: a version such as 3.11 is needed."),
        (["numpy", "--platform", "moon"], "invalid value 'moon'"),
        (["numpy", "--as-of", "yesterday week"], "invalid value 'yesterday week'"),
        (["numpy", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["numpy", "--apply", "x"], "invalid int value"),
    ],
)
def test_misuse_is_told_in_a_sentence(explain: Run, arguments: list[str], told: str) -> None:
    code, said, complaint = explain(*arguments)
    assert (code, said) == (2, "")
    assert told in complaint
    assert "Traceback" not in complaint


def test_without_uv_it_says_what_is_needed(
    explain: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr("verify.explain.uv.subprocess.run", lambda *_, **__: failed)
    code, _, complaint = explain("numpy")
    assert (code, "pip install uv" in complaint) == (2, True)


def test_what_resolves_is_told_with_open_choices(explain: Run) -> None:
    code, said, _ = explain("transformers==4.51.3", "huggingface-hub>=0.30")
    assert code == 0
    assert "huggingface-hub  0.36.0" in said


def test_a_row_is_never_moved(explain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from verify import rows

    row = rows.Row(
        name="old", why="", pythons=("3.11",), cuda="", driver="", driver_minimum="",
        architectures=(), newest=False, reasons={},
        pins={"transformers": "4.46.3", "tokenizers": "0.20.3"},
        locked={"3.11": {"safetensors": "0.5.2"}},
    )  # fmt: skip
    monkeypatch.setattr(rows, "load", lambda: {"old": row})
    code, said, _ = explain("--row", "old", "accelerate==1.2.1")
    assert code == 0
    assert "safetensors  0.5.2 -> 0.8.0" in said
    code, said, _ = explain(
        "--row", "old", "-r", written("trl==0.17.0\ntokenizers>=0.21\n"), "--json"
    )
    assert code == 1
    moved = {m["from"]["name"] for c in json.loads(said)["changes"] for m in c["moves"]}
    assert "transformers" not in moved
    assert all(
        "==0.20.3" not in m["from"]["text"] for c in json.loads(said)["changes"] for m in c["moves"]
    )
    code, _, complaint = explain("--row", "nope", "x")
    assert (code, "The rows are: old." in complaint) == (2, True)


def test_another_python_and_a_date(explain: Run) -> None:
    code, said, _ = explain("numpy==2.3.0", "--python", "3.10")
    assert code == 1
    assert "numpy 2.3.0 has wheels only for Python 3.11, 3.12 and 3.13." in said
    assert "numpy==2.2.6  # was 2.3.0, command line" in said
    assert explain("numpy==2.3.0", "--python", "3.12")[0] == 0
    code, said, _ = explain("transformers==4.51.3", "--as-of", "2025-01-01")
    assert code == 1
    assert "The nearest is 4.47.0. The date given leaves out later ones." in said
    assert explain("transformers==4.51.3", "--as-of", "2025-05-01")[0] == 0


def test_a_version_that_does_not_exist(explain: Run) -> None:
    code, said, _ = explain("-r", written("trl==0.12.1\ntransformers==4.46.4\n"), "--json")
    assert code == 1
    (conflict,) = json.loads(said)["conflicts"]
    assert conflict["kind"] == "no-version"
    assert conflict["nearby"] == ["4.46.3", "4.47.0"]
    assert changes(said)[0] == ["transformers==4.46.3"]


def test_a_package_that_does_not_exist(explain: Run) -> None:
    code, said, _ = explain("transfomers==4.51.3", "trl==0.12.2", "transformers==4.51.3")
    assert code == 2
    assert "no package transfomers. Did you mean transformers?" in said
    assert "trl 0.12.2 needs transformers<4.47.0" in said, "the rest is explained all the same"


def test_a_build_of_another_index(explain: Run) -> None:
    code, said, _ = explain("torch==2.4.0+cu121")
    assert code == 1
    assert "--extra-index-url" in said
    assert "    torch==2.4.0  # was 2.4.0+cu121" in said


def test_source_only_is_not_built_unasked(explain: Run) -> None:
    code, said, _ = explain("hydra-core==1.3.2")
    assert code == 1
    assert "antlr4-python3-runtime" in said


def test_the_chain_is_told(explain: Run) -> None:
    _, said, _ = explain("trl==0.12.2", "tokenizers==0.21.0", "transformers>=4.46")
    assert "transformers 4.46.3 needs tokenizers>=0.20,<0.21; you pinned 0.21.0." in said
    assert "trl==0.12.2 (command line) brings in transformers 4.46.3." in said


def test_a_constraint_is_part_of_a_conflict(explain: Run) -> None:
    written("huggingface-hub==0.24.5\n", "limits.txt")
    _, said, _ = explain("-r", written("-c limits.txt\ntransformers==4.51.3\n"))
    assert "limits.txt:1 limits huggingface-hub to ==0.24.5." in said
    # a constraint on what nobody needs does no harm
    assert explain("-c", "limits.txt", "numpy==1.26.4")[0] == 0


def test_markers_and_extras_stay_as_they_are(explain: Run) -> None:
    text = 'transformers==4.51.3\nhuggingface_hub[cli] == 0.24.5 ; sys_platform == "linux"  # old\n'
    _, said, _ = explain("-r", written(text), "--keep", "transformers")
    assert '+huggingface_hub[cli] ==0.30.0 ; sys_platform == "linux"  # old' in said
    off = text.replace('"linux"', '"win32"')
    assert explain("-r", written(off))[0] == 0, "its marker does not hold"


def test_an_answer_is_remembered_and_serves_offline(
    explain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, before, _ = explain("-r", written(TWO))
    assert code == 1
    monkeypatch.setenv("UV_CACHE_DIR", str(Path("empty").resolve()))
    code, after, _ = explain("-r", "r.txt", "--offline")
    assert (code, after) == (1, before)
    code, _, complaint = explain("numpy==1.26.4", "--offline")
    assert code == 2
    assert "in no cache" in complaint


def test_an_index_out_of_reach_is_not_a_conflict(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with index.serve({}) as address:
        pass
    use_index(address)
    code, said, complaint = runner(capsys)("numpy==1.26.4", "--json")
    assert code == 2
    assert "cannot be reached" in complaint
    assert set(json.loads(said)) == {"schema", "error"}


def test_yanked_and_pre_releases_only_when_asked_for(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    invented = {
        "user": {"1": release("user", "1", "lib>=2")},
        "lib": {
            "1": release("lib", "1"),
            "2": release("lib", "2", yanked="broken"),
            "2.1rc1": release("lib", "2.1rc1"),
            "3": release("lib", "3"),
        },
    }
    with index.serve(invented) as address:
        use_index(address)
        run = runner(capsys)
        _, said, _ = run("user==1", "lib==1", "--json")
        assert changes(said) == [["lib==3"]]
        _, said, _ = run("user==1", "lib==1", "--json", "--pre")
        assert changes(said) == [["lib==2.1rc1"]]
        assert run("user==1", "lib==2")[0] == 0, "a yanked release that is pinned is asked for"


def release(*arguments: str, **more: str) -> dict[str, object]:
    return index.release(*arguments, **more)  # type: ignore[arg-type]


def test_demands_that_meet_below_the_requirements(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither requirement names the package in question, and the way to it is long."""
    invented = {
        "app": {"1": release("app", "1", "middle")},
        "middle": {"5": release("middle", "5", "base<2")},
        "tool": {"1": release("tool", "1", "base>=2")},
        "base": {"1": release("base", "1"), "2": release("base", "2")},
    }
    with index.serve(invented) as address:
        use_index(address)
        _, said, _ = runner(capsys)("app==1", "tool==1")
    assert "tool 1 needs base>=2" in said
    assert "middle 5 needs base<2" in said
    assert "app==1 (command line) brings in middle 5." in said
    assert "No change to versions nearby resolves this." in said
    assert "It resolves without app==1." in said


def test_no_change_goes_back_for_years(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Release 1 needs nothing, and was long replaced when the oldest of the set came out."""
    invented = {
        "tool": {
            "1": release("tool", "1", uploaded="2020-01-01"),
            "3": release("tool", "3", "lib>=2", uploaded="2024-06-01"),
            "4": release("tool", "4", "lib>=2", uploaded="2024-12-01"),
            "5": release("tool", "5", "lib>=2", uploaded="2025-02-01"),
        },
        "lib": {
            "1": release("lib", "1", uploaded="2024-11-01"),
            "2": release("lib", "2", uploaded="2025-01-01"),
        },
    }
    with index.serve(invented) as address:
        use_index(address)
        run = runner(capsys)
        _, said, _ = run("tool==5", "lib==1", "--json")
        assert changes(said) == [["lib==2"]]
        # beside a pin of that time it is not out of place
        invented_old = {**invented, "old": {"1": release("old", "1", uploaded="2019-01-01")}}
    with index.serve(invented_old) as address:
        use_index(address)
        _, said, _ = run("tool==5", "lib==1", "old==1", "--json")
        assert changes(said) == [["lib==2"], ["tool==1"]]


def test_apply_that_cannot_be_is_told_in_the_one_document(explain: Run) -> None:
    code, said, complaint = explain("-r", written(UPSTREAM), "--json", "--apply", "7")
    assert code == 2
    assert "There is no change 7" in json.loads(said)["error"]
    assert json.loads(said)["changes"]
    assert "There is no change 7" in complaint
    code, said, complaint = explain("-r", "r.txt", "--apply", "7")
    assert "Smallest change" in said, "the answer stands"


@pytest.mark.parametrize(("status", "words"), [(401, "401 Unauthorized"), (403, "403 Forbidden")])
def test_an_index_that_lets_nobody_in_is_not_one_without_the_package(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    status: int,
    words: str,
) -> None:
    refusal = [status]
    releases = {"mine": {"1": release("mine", "1")}}
    with index.serve(releases, lambda: refusal[0]) as address:
        use_index(address)
        run = runner(capsys)
        code, said, complaint = run("mine==1", "--json")
        assert code == 2
        assert set(json.loads(said)) == {"schema", "error"}
        assert f"The index {address} refused access ({words})." in complaint
        assert "user name and password" in complaint
        refusal[0] = 0
        assert run("mine==1")[0] == 0, "nothing of it was kept"


def test_git_is_quoted_in_its_own_words(explain: Run) -> None:
    code, _, complaint = explain("mine @ git+https://joe:pw123@127.0.0.1:1/x/y.git@main")
    assert code == 2
    assert "Git could not get what is asked for: " in complaint
    assert "exit successfully" not in complaint
    assert "pw123" not in complaint


@pytest.mark.parametrize("sources", [[], ["lib-2.tar.gz"]])
def test_what_is_yanked_is_said_to_be(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    sources: list[str],
) -> None:
    """Of a yanked release with sources the resolver says only that it has no wheel."""
    files = ["lib-2-py3-none-any.whl", *sources]
    invented = {
        "user": {"1": release("user", "1", "lib>=2,<3")},
        "lib": {
            "1": release("lib", "1"),
            "2": index.release("lib", "2", yanked="broken", files=files),
            "3": release("lib", "3"),
        },
        "deaf": {"1": release("deaf", "1", "gone>=1")},
        "gone": {"1": release("gone", "1", "nowhere", yanked="broken")},
        "src": {"1": index.release("src", "1", files=["src-1.tar.gz"])},
    }
    with index.serve(invented) as address:
        use_index(address)
        run = runner(capsys)
        for asked in ("lib>=2,<3", "user==1"):
            code, said, _ = run(asked)
            assert code == 1
            assert "Of lib only 2 would do, and is yanked" in said
            assert "only if it is pinned: lib==2\n" in said
            assert "--build" not in said
        code, said, _ = run("lib==2")
        assert (code, "yanked" in said) == (0, True)
        assert "yanked:" not in run("deaf==1")[1], "without that too it would not resolve"
        assert "To allow that: --build src" in run("src>=1")[1], "what is not yanked may be built"


def test_a_project_is_asked_about_for_its_own_pythons(explain: Run) -> None:
    pytest.importorskip("tomllib", reason="reads TOML from Python 3.11 on")
    text = '[project]\nname = "mine"\nrequires-python = ">=3.12"\ndependencies = ["numpy==2.3.0"]\n'
    name = written(text, "pyproject.toml")
    code, _, complaint = explain("-r", name, "--python", "3.11")
    assert code == 2
    assert "pyproject.toml:3: the project needs Python >=3.12" in complaint
    assert explain("-r", name, "--python", "3.12")[0] == 0


def test_an_extra_needs_a_project(explain: Run) -> None:
    code, _, complaint = explain("-r", written("numpy==1.26.4\n"), "--extra", "dev")
    assert code == 2
    assert "--extra dev: extras are those of a pyproject.toml, and none is given" in complaint


@pytest.mark.parametrize(
    ("asked", "limits", "told"),
    [
        ("lib==1", "lib>=2", "you pinned lib 1; c.txt:1 limits lib to >=2."),
        ("app==1", "lib>=2", "app 1 needs lib<2; c.txt:1 limits lib to >=2."),
        ("many==1\nlib==3", "", "many 1 needs lib!=1.5,<3; you pinned 3."),
    ],
)
def test_the_two_demands_are_told(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    asked: str,
    limits: str,
    told: str,
) -> None:
    invented = {
        "app": {"1": release("app", "1", "lib<2")},
        "many": {"1": release("many", "1", "lib>=1,!=1.5,<3")},
        "lib": {v: release("lib", v) for v in ("1", "1.5", "2", "3")},
    }
    with index.serve(invented) as address:
        use_index(address)
        written(limits, "c.txt")
        code, said, _ = runner(capsys)("-r", written(asked), "-c", "c.txt")
    assert code == 1
    assert told in said
    assert "resolver's reasons" not in said


def test_what_a_wheel_of_ones_own_needs_is_told(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    wheel = index.wheel(tmp_path, "mine", "1.0", "lib<2")
    with index.serve({"lib": {v: release("lib", v) for v in ("1", "2")}}) as address:
        use_index(address)
        code, said, _ = runner(capsys)(f"mine @ {wheel.as_uri()}", "lib==2")
    assert code == 1
    assert "mine needs lib<2; you pinned 2." in said

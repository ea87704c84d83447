"""What is written: table, JSON, JUnit, page, comparison; and what must never be in it."""

from __future__ import annotations

import copy
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from verify.catalogue import CHECKS, GROUPS
from verify.machine import Machine
from verify.report import compare, document, files, junit, mending, page, summary
from verify.report.table import Table
from verify.result import Result, Status, Tier

TITLES = {group.name: group.title for group in GROUPS}
RESULTS = [
    Result("packages.python", "packages", Status.PASS, "cpython 3.11", seconds=0.25),
    Result("host.shm", "host", Status.FAIL, "0 <b> free & \x1b[31mred", "8 MiB", "host.shm",
           "It is full.", "docker run --shm-size=8g", 1.5, {"free": 0}, "Traceback…"),
    Result("host.limits", "host", Status.WARN, "256", "1024", "host.limits", "Low.", "ulimit"),
    Result("hub.reach", "hub", Status.SKIP, "it was not asked for (--online)"),
]  # fmt: skip


def made(results=RESULTS, strict=False):
    return document.document(
        results, Machine(facts={"driver": None, "cores": 2}), tier="default", row=None,
        strict=strict, started="2026-01-01 00:00:00Z", seconds=2.0,
    )  # fmt: skip


# -- verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "strict", "code", "text"),
    [
        ([0, 3], False, 0, "What was checked works. 1 passed, 1 skipped."),
        ([0, 2], False, 0, "What was checked works. 1 passed, 1 warned."),
        ([0, 2], True, 1, "warnings count"),
        ([0, 1, 2], False, 1, "does not work: host.shm"),
        ([3], False, 0, "Nothing was checked"),
    ],
)
def test_verdict_and_exit_code(kept, strict, code, text):
    results = [RESULTS[index] for index in kept]
    assert summary.exit_code(results, strict) == code
    assert text in summary.verdict(results, strict)


def test_only_a_whole_tier_says_that_the_installation_works():
    every = [Result(name, "", Status.PASS, "x") for name, c in CHECKS.items() if c.tier < Tier.FULL]
    assert summary.verdict(every, False).startswith("This installation works. ")
    assert summary.verdict(every[1:], False).startswith("What was checked works. ")


def test_table_repeats_failures_and_ends_with_the_verdict():
    out = io.StringIO()
    table = Table(out, TITLES)
    for result in RESULTS:
        table.result(result)
    table.running({"host.shm": 3.0})  # shown on terminals only
    table.close(RESULTS, "The verdict.")
    text = out.getvalue()
    assert text.count("docker run --shm-size=8g") == 2
    assert text.count("ulimit") == 1
    assert text.rstrip().endswith("The verdict.")
    assert all(result.identifier in text for result in RESULTS)
    assert "\r" not in text


# -- mending --------------------------------------------------------------------------------


def failure(problem, replaces="", follows="", status=Status.FAIL, first=False):
    return Result(
        problem, "packages", status, "x", problem=problem, fix=f"mend {problem}",
        replaces=frozenset(replaces.split()), follows=frozenset(follows.split()), first=first,
    )  # fmt: skip


DUPLICATE = failure("packages.duplicate", "transformers", status=Status.WARN, first=True)
TOO_OLD = failure("packages.too-old", "transformers")
HUB = failure("transformers.hub-mismatch", "huggingface-hub", "transformers")
IMPORT = failure("transformers.import", "transformers", "torch")
SHM = failure("host.shm")


@pytest.mark.parametrize(
    ("results", "steps", "withheld"),
    [
        ([TOO_OLD, HUB, SHM], [TOO_OLD, SHM], [HUB]),
        ([HUB, SHM], [HUB, SHM], []),
        ([HUB, DUPLICATE], [DUPLICATE], [HUB]),
        ([SHM, DUPLICATE], [SHM], []),  # it breaks nothing that failed
        ([HUB, HUB], [HUB], []),
        ([IMPORT, failure("packages.files-missing", "torch", first=True)],
         [failure("packages.files-missing", "torch", first=True)], [IMPORT]),
        ([IMPORT, SHM, failure("packages.python", "*", first=True)],
         [failure("packages.python", "*", first=True), SHM], [IMPORT]),
    ],
)  # fmt: skip
def test_what_an_earlier_step_may_make_wrong_is_withheld(results, steps, withheld):
    found = mending.plan(results)
    assert list(found.steps) == steps
    assert list(found.withheld) == withheld
    assert bool(found.again) == bool(withheld)


def test_every_report_has_the_same_steps():
    results = [TOO_OLD, HUB]
    out = io.StringIO()
    Table(out, TITLES).close(results, "The verdict.")
    shown = made(
        results=[
            Result(**{**vars(one), "identifier": i})
            for one, i in zip(results, ("packages.row", "packages.metadata"), strict=True)
        ]
    )
    top = page.text(shown, TITLES).partition("<h2>")[0]
    assert shown["mend"]["steps"] == ["packages.row"]
    for text in (out.getvalue(), top, shown["mend"]["then"]):
        assert "hub-mismatch" in text
        assert "mend transformers.hub-mismatch" not in text
        assert "run verify again" in " ".join(text.split())


# -- JSON -----------------------------------------------------------------------------------


def test_json_schema():
    """Names and types that programs rely on; a change of these needs another schema number."""
    found = json.loads(json.dumps(made()))
    assert document.SCHEMA == 1
    assert {name: type(value).__name__ for name, value in found.items()} == {
        "schema": "int", "tool": "str", "started": "str", "seconds": "float", "tier": "str",
        "row": "NoneType", "strict": "bool", "machine": "dict", "counts": "dict",
        "verdict": "str", "exit_code": "int", "mend": "dict", "results": "list",
    }  # fmt: skip
    assert found["mend"] == {"steps": ["host.shm"], "then": ""}
    assert found["counts"] == {"PASS": 1, "WARN": 1, "FAIL": 1, "SKIP": 1}
    for result in found["results"]:
        assert {name: type(value).__name__ for name, value in result.items()} == {
            "identifier": "str", "group": "str", "title": "str", "status": "str", "have": "str",
            "need": "str", "problem": "str", "why": "str", "fix": "str", "seconds": "float",
            "facts": "dict", "output": "str",
        }  # fmt: skip


def test_a_report_is_read_again_and_others_are_refused(tmp_path):
    file = tmp_path / "a.json"
    files.write(file, document.text(made()))
    assert document.read(file) == made()
    for text, said in (
        ("{", "not JSON"),
        ("[]", "not a report"),
        (json.dumps({**made(), "schema": 99}), "schema 99"),
        (json.dumps({"tool": "zo2 verify", "schema": 1, "machine": {}}), "no results"),
        ("[" * 200_000, "not JSON"),
        (json.dumps({**made(), "machine": []}), "the machine is no object"),
        (json.dumps({**made(), "results": {"a": 1}}), "no list of objects"),
        (json.dumps({**made(), "results": [1]}), "no list of objects"),
        (json.dumps({**made(), "results": [{"identifier": "x"}]}), "result 0 lacks 'status'"),
    ):
        file.write_text(text)
        with pytest.raises(document.UnreadableError, match=said):
            document.read(file)
    with pytest.raises(document.UnreadableError, match="cannot be read"):
        document.read(tmp_path / "none.json")


# -- JUnit and page -------------------------------------------------------------------------


@pytest.mark.parametrize(("strict", "failures"), [(False, 1), (True, 2)])
def test_junit(strict, failures):
    top = ElementTree.fromstring(junit.text(made(strict=strict)))
    assert top.tag == "testsuites"
    assert (top.get("tests"), top.get("failures"), top.get("skipped")) == ("4", str(failures), "1")
    assert len(list(top.iter("failure"))) == failures
    shm = next(case for case in top.iter("testcase") if case.get("name") == "host.shm")
    assert "docker run --shm-size=8g" in shm.find("failure").text
    assert top.find(".//skipped").get("message") == RESULTS[3].have


class Reader(HTMLParser):
    """Collects texts, and what would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.texts, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_whole_and_escaped():
    text = page.text(made(), TITLES)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.links == []
    assert "url(" not in text
    assert "<b>" not in text
    shown = " ".join(reader.texts)
    for result in RESULTS:
        assert result.identifier in shown
        assert result.fix in shown
    assert "This installation does not work: host.shm." in shown


# -- comparison -----------------------------------------------------------------------------


def test_comparison_shows_verdicts_first_and_no_noise():
    first, second = made(), copy.deepcopy(made())
    second["results"][1]["status"], second["results"][1]["problem"] = "PASS", ""
    second["results"][1]["facts"] = {"free": 7, "total": 9}
    second["machine"]["driver"] = "580.65.06"
    second["seconds"] = 99.0
    second["results"][0]["seconds"] = 99.0
    found = compare.differences(first, second)
    assert [one.where for one in found] == ["host.shm", "machine.driver", "host.shm.total"]
    text = "\n".join(compare.lines(found, ("a", "b")))
    assert "b: 580.65.06" in text
    assert "a: (nothing)" in text


def test_comparison_of_packages_names_each_once():
    first = made([Result("packages.row", "packages", Status.PASS, "x",
                         facts={"installed": {"torch": "2.4.0", "a": "1"}}),
                  Result("packages.metadata", "packages", Status.PASS, "x",
                         facts={"installed": {"torch": "2.4.0", "a": "1"}})])  # fmt: skip
    second = copy.deepcopy(first)
    for result in second["results"]:
        result["facts"]["installed"] = {"torch": "2.5.1", "a": "1", "b": "3"}
    found = compare.differences(first, second)
    assert [(one.where, one.first, one.second) for one in found] == [
        ("packages.row.installed.torch", "2.4.0", "2.5.1"),
        ("packages.row.installed.b", None, "3"),
    ]


def test_equal_reports_say_so():
    assert compare.differences(made(), made()) == []
    assert "do not differ" in next(compare.lines([], ("a", "b")))


# -- files ----------------------------------------------------------------------------------


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    files.write(file, "before")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(files.UnwritableError, match="No space left"):
        files.write(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before")
    link.symlink_to(target)
    files.write(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"


def test_what_cannot_be_written_is_known_beforehand(tmp_path):
    files.check(tmp_path / "new")
    files.check(Path("/dev/null"))
    for path in (tmp_path, tmp_path / "no" / "file", Path("/proc/1/report.json")):
        with pytest.raises(files.UnwritableError):
            files.check(path)

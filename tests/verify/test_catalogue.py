"""The catalogue is whole, and the page is written from it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from verify.catalogue import CHECKS, GROUPS, PROBLEMS, page

ROOT = Path(__file__).resolve().parents[2]


def test_identifiers_are_unique_and_stable_in_form():
    for kind in ("checks", "problems"):
        names = [one.identifier for group in GROUPS for one in getattr(group, kind)]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9]+\.[a-z0-9-]+", name) for name in names)


def test_every_check_has_its_probe_and_known_needs():
    for check in CHECKS.values():
        if check.probe != "machine":
            probes = importlib.import_module(f"verify.probes.{check.probe}").PROBES
            assert check.identifier in probes
        assert {*check.needs, *check.after} <= CHECKS.keys()
        assert check.problem in PROBLEMS


def test_decisions_name_problems_that_exist():
    named = set()
    for path in (ROOT / "verify" / "checks").glob("*.py"):
        named |= set(re.findall(r'(?:failed|warned|wrong)\(\s*"([^"]+)"', path.read_text()))
    assert len(named) > 50
    assert named <= PROBLEMS.keys()


def test_every_problem_has_a_test_that_meets_it():
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert [name for name in PROBLEMS if f'"{name}"' not in tests] == []


def test_the_page_has_not_drifted():
    written = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m verify --page > docs/troubleshooting.md"


def test_the_page_has_every_identifier_text_cause_and_mend():
    text = page()
    for problem in PROBLEMS.values():
        assert f"### {problem.identifier}\n" in text
        assert problem.cause in text
    for check in CHECKS.values():
        assert f"`{check.identifier}`" in text
    assert "No module named 'setuptools'" in text

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from verify.explain.neighbourhood import distance, limit, relaxed, settled, way_back
from verify.explain.requirements import Requirement

VERSIONS = [Version(f"{a}.{b}.{c}") for a in range(4) for b in range(4) for c in range(3)]
bounds = st.sampled_from([f"{a}.{b}" for a in range(4) for b in range(4)])


@st.composite
def specifiers(draw: st.DrawFn) -> str:
    """A pin, a prefix, a compatible release, or a range, perhaps with a hole."""
    kind = draw(
        st.sampled_from(["=={}", "=={}.*", "~={}.1", ">={}", "<{}", "<={}", ">{}", "range"])
    )
    if kind == "range":
        low, high = sorted((draw(bounds), draw(bounds)), key=Version)
        return f">={low},<{high}" if low != high else f"=={low}.1"
    hole = draw(st.sampled_from(["", "", ",!=1.1.1"]))
    return kind.format(draw(bounds)) + (hole if not kind.startswith("==") else "")


@given(specifiers())
def test_the_two_directions_are_what_lies_on_either_side(specifier: str) -> None:
    """Nothing that was allowed, nothing of the other side, and all of this side but holes."""
    forms = {form.moved: form.specifier for form in relaxed(Requirement("p" + specifier))}
    allowed = [v for v in VERSIONS if v in SpecifierSet(specifier)]
    if not allowed:
        return
    holes = {Version("1.1.1")} if "!=" in specifier else set()
    above = {v for v in VERSIONS if v > max(allowed)} - holes
    below = {v for v in VERSIONS if v < min(allowed)} - holes
    assert {v for v in VERSIONS if v in forms.get("newer", SpecifierSet("<0"))} == above
    assert {v for v in VERSIONS if v in forms.get("older", SpecifierSet("<0"))} == below


@given(specifiers(), st.sampled_from(VERSIONS))
def test_a_settled_requirement_allows_the_version_and_still_what_lay_between(
    specifier: str, version: Version
) -> None:
    requirement = Requirement("p" + specifier)
    for form in relaxed(requirement):
        if version in form.specifier:
            new = settled(requirement, version, form.moved)
            assert version in new.specifier
            assert str(requirement.specifier) != str(new.specifier)


@pytest.mark.parametrize(
    ("old", "version", "direction", "new"),
    [
        ("p==1.2.3", "1.4.0", "newer", "p==1.4.0"),
        ("p == 1.2.3 ; python_version > '3'", "1.4", "newer", "p ==1.4 ; python_version > '3'"),
        ("p[x,y]==1.2", "1.1", "older", "p[x,y]==1.1"),
        ("p~=1.2", "2.0.1", "newer", "p~=2.0.1"),
        ("p~=1.2", "2", "newer", "p~=2.0"),
        ("p==1.2.*", "1.4.1", "newer", "p==1.4.*"),
        ("p>=1.2,<2", "2.1", "newer", "p>=1.2,<=2.1"),
        ("p>=1.2,<2", "1.0", "older", "p>=1.0,<2"),
        ("p<2,!=1.5,>=1.2", "1.0", "older", "p<2,!=1.5,>=1.0"),
        ("p==2.4.0+cu121", "2.4.0", "newer", "p==2.4.0"),
    ],
)
def test_a_change_is_written_as_the_requirement_was(
    old: str, version: str, direction: str, new: str
) -> None:
    assert settled(Requirement(old), Version(version), direction).text == new


def test_a_build_of_a_release_is_next_to_the_release() -> None:
    newer, older = relaxed(Requirement("p==2.4.0+cu121"))
    assert Version("2.4.0") in newer.specifier
    assert Version("2.4.0") not in older.specifier


@pytest.mark.parametrize("text", ["p", "p!=1.2", "p @ https://example.org/p.whl"])
def test_what_has_no_ends_does_not_move(text: str) -> None:
    assert relaxed(Requirement(text)) == []


def test_the_way_back_ends_where_the_set_comes_from() -> None:
    dates = {"old": "2024-01-10", "p": "2025-03-01"}
    assert way_back(dates, "p") == "2024-01-10"
    assert way_back(dates, "old") == "2023-07-11"
    assert way_back({}, "p") == ""
    assert [str(r.specifier) for r in relaxed(Requirement("p==3"), "2")][1] == "<3,>=2"


def test_distance_is_by_major_then_minor() -> None:
    pin = Requirement("p==1.10.0")
    order = ["1.10.1", "1.12.0", "1.4", "2.0"]
    assert sorted(order, key=lambda v: distance(pin, Version(v))) == order


@given(specifiers())
def test_a_limit_is_the_upper_end(specifier: str) -> None:
    allowed = [v for v in VERSIONS if v in SpecifierSet(specifier)]
    limits = [upper for clause in SpecifierSet(specifier) if (upper := limit(clause))]
    if not allowed:
        return
    within = {v for v in VERSIONS if all(v in SpecifierSet(upper) for upper in limits)}
    assert within >= {v for v in VERSIONS if v <= max(allowed)}
    if limits:
        assert within == {v for v in VERSIONS if v <= max(allowed)}

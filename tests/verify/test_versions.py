"""verify's own reading of versions and requirements, against `packaging`."""

from __future__ import annotations

from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as Reference
from packaging.specifiers import SpecifierSet
from packaging.version import Version as ReferenceVersion

from verify.versions import (
    InvalidError,
    Requirement,
    Version,
    accepts,
    canonical,
    marker_environment,
)

numbers = st.integers(0, 12)
releases = st.lists(numbers, min_size=1, max_size=4).map(lambda ns: ".".join(map(str, ns)))
versions = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "1!"]),
        releases,
        st.sampled_from(["", "", "a1", "b2", "rc1", ".rc2", "-alpha.3"]),
        st.sampled_from(["", "", ".post1", "-2"]),
        st.sampled_from(["", "", ".dev3"]),
        st.sampled_from(["", "", "+cu121", "+local.5"]),
    ),
)
plain = st.builds("".join, st.tuples(releases, st.sampled_from(["", "", "rc1", ".post1", ".dev2"])))
clauses = st.one_of(
    st.builds("".join, st.tuples(st.sampled_from(["<=", ">=", "<", ">", "==", "!="]), plain)),
    st.builds(lambda op, r: f"{op}{r}.*", st.sampled_from(["==", "!="]), releases),
    st.builds(lambda r, n: f"~={r}.{n}", releases, numbers),
)


@given(versions, versions)
def test_order(one, two):
    expected = ReferenceVersion(one) < ReferenceVersion(two)
    assert (Version.parse(one) < Version.parse(two)) == expected


@given(st.lists(clauses, min_size=1, max_size=3).map(",".join), versions)
def test_specifiers(specifier, version):
    expected = SpecifierSet(specifier).contains(version, prereleases=True)
    assert accepts(specifier, version) == expected


@pytest.mark.parametrize("text", ["", "x", "1.2.x", "1..2", ">=1"])
def test_what_is_no_version(text):
    with pytest.raises(InvalidError):
        Version.parse(text)


def test_every_requirement_that_is_installed_here():
    environment = marker_environment()
    count = 0
    for one in metadata.distributions():
        for text in one.requires or []:
            ours, reference = Requirement.parse(text), Reference(text)
            assert ours.name == canonical(reference.name)
            assert set(ours.extras) == {canonical(extra) for extra in reference.extras}
            assert SpecifierSet(ours.specifier) == reference.specifier
            for extra in ("", "test", "dev", "torch"):
                expected = reference.marker is None or reference.marker.evaluate({"extra": extra})
                assert ours.applies({**environment, "extra": extra}) == expected, text
            count += 1
    assert count > 100


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("python_version >= '3.10' and (os_name == 'posix' or os_name == 'nt')", True),
        ("python_version < '3.9' or sys_platform == 'linux' and 'x' in 'xyz'", True),
        ("sys_platform not in 'win32 cygwin'", True),
        ("platform_machine == 'sparc'", False),
    ],
)
def test_markers(marker, expected):
    environment = {**marker_environment(), "sys_platform": "linux", "os_name": "posix"}
    assert Requirement("a", (), "", marker).applies(environment) == expected


@pytest.mark.parametrize("marker", ["os_name ==", "(os_name == 'x'", "color == 'red'", "os_name $"])
def test_what_is_no_marker(marker):
    with pytest.raises(InvalidError):
        Requirement("a", (), "", marker).applies(marker_environment())

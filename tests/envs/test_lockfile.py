"""A lock: one form, and whoever changes it by hand is told where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import lockfile, matrix
from envs.errors import EnvsError
from envs.lockfile import Entry, Lock

DIGESTS = [f"{i:064x}" for i in range(6)]
names = st.from_regex(r"[a-z]{1,6}(-[a-z]{1,4})?", fullmatch=True)
versions = st.from_regex(r"[1-9]\.[0-9]{1,2}(\.post1)?", fullmatch=True)


@st.composite
def locks(draw) -> Lock:
    entries = [
        Entry(
            name,
            draw(versions),
            draw(st.sampled_from(["", ' ; python_version < "3.11"'])),
            tuple(sorted(draw(st.sets(st.sampled_from(DIGESTS), min_size=1)))),
            tuple(sorted(draw(st.sets(names, min_size=1)))),
        )
        for name in sorted(draw(st.sets(names, min_size=1, max_size=5)))
    ]
    inputs = lockfile.digest_inputs([e.name for e in entries])
    return Lock("row", "3.11", "pip-tools 7", inputs, tuple(entries))


def read(text: str, folder: Path) -> Lock:
    path = folder / "row-py311.txt"
    path.write_text(text)
    return lockfile.read(path, "lockfiles/row-py311.txt")


def contents(lock: Lock) -> list[tuple]:
    return [(e.name, e.version, e.marker, e.hashes, e.via) for e in lock.entries]


@given(lock=locks())
def test_reading_gives_what_was_written(lock, tmp_path_factory):
    again = read(lock.text(), tmp_path_factory.mktemp("lock"))
    assert contents(again) == contents(lock)
    assert again.text() == lock.text()


@given(lock=locks(), data=st.data())
def test_any_change_of_what_is_installed_is_told_with_its_line(lock, data, tmp_path_factory):
    lines = lock.text().splitlines()
    at = data.draw(
        st.sampled_from([i for i, line in enumerate(lines) if "==" in line or "--hash" in line])
    )
    line = lines[at]
    places = [i for i, c in enumerate(line) if c.isalnum()]
    place = data.draw(st.sampled_from(places))
    new = data.draw(st.sampled_from([c for c in "abcdef0123456789" if c != line[place]]))
    lines[at] = line[:place] + new + line[place + 1 :]
    with pytest.raises(EnvsError) as caught:
        read("\n".join(lines) + "\n", tmp_path_factory.mktemp("lock"))
    message = str(caught.value)
    assert "\n" not in message
    number = int(message.removeprefix("lockfiles/row-py311.txt:").partition(":")[0])
    owner = max(i for i in range(at + 1) if "==" in lines[i])
    assert owner + 1 <= number <= at + 1


@given(lock=locks(), data=st.data())
def test_a_package_less_or_more_is_told(lock, data, tmp_path_factory):
    entry = data.draw(st.sampled_from(lock.entries))
    block = Lock("", "", "", "", (entry,)).text().split("\n", 5)[5]
    text = lock.text()
    assert block in text
    with pytest.raises(EnvsError, match="added to the lock or taken from it"):
        read(text.replace(block, ""), tmp_path_factory.mktemp("lock"))
    other = Entry("zzz-other", "1.0", "", (DIGESTS[0],), ("me",))
    more = Lock("", "", "", "", (other,)).text().split("\n", 5)[5]
    with pytest.raises(EnvsError, match="added to the lock or taken from it"):
        read(text + more, tmp_path_factory.mktemp("lock"))
    with pytest.raises(EnvsError, match=f"{entry.name} is there twice"):
        read(text + block, tmp_path_factory.mktemp("lock"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("torch==2.13.0+cpu \\", "local build"),
        ("torch @ file:///somewhere/torch.whl", "'file:'"),
        ("--index-url https://example.org/simple", "'--index-url'"),
        ("--find-links /somewhere/wheels", "'--find-links'"),
        ("-e .", "'-e'"),
        ("torch>=2", "not a pinned requirement"),
        ("torch", "not a pinned requirement"),
        ("    --hash=sha256:12", "not the sha256"),
        ("    --hash=md5:12345", "not the sha256"),
    ],
)
def test_what_a_lock_never_holds(line, says):
    text = f"good==1.0 \\\n    --hash=sha256:{DIGESTS[1]}\n{line}\n"
    with pytest.raises(EnvsError, match=says) as caught:
        lockfile.parse(text, "x.txt")
    assert str(caught.value).startswith("x.txt:3: ")


def test_an_entry_without_hash():
    with pytest.raises(EnvsError, match=r"x\.txt:1: good has no hash"):
        lockfile.parse(f"good==1.0\nbad==1.0 \\\n    --hash=sha256:{DIGESTS[0]}\n", "x.txt")


def test_header_and_absence(tmp_path):
    with pytest.raises(EnvsError, match="there is no such lock; `nox -s lock` writes it"):
        lockfile.read(tmp_path / "no.txt", "lockfiles/no.txt")
    with pytest.raises(EnvsError, match=r"lockfiles/row-py311\.txt:1: the header was changed"):
        read("torch==2.4.0\n", tmp_path)


ROWS = matrix.load()
ALL = [(row, python) for row in ROWS.values() for python in row.pythons]


@pytest.mark.parametrize(("row", "python"), ALL, ids=[row.lock_name(p) for row, p in ALL])
def test_the_locks_of_the_project_name_no_machine(row, python):
    path = matrix.ROOT / "lockfiles" / row.lock_name(python)
    text = path.read_text()
    lock = lockfile.read(path, path.name)
    assert lock.text() == text
    for word in (
        "file:",
        "://",
        "/home",
        "/root",
        "/tmp",
        "+cpu",
        "+cu",
        "index-url",
        "find-links",
    ):
        assert word not in text
    assert {"setuptools", "greenlet", "safetensors", "numba", "pytest"} <= set(lock.versions)
    assert {p: lock.versions[p] for p in row.pins} == dict(row.pins)

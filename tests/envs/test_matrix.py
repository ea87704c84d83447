"""The table: what a row must say, and the one line that a mistake gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs import matrix
from envs.errors import EnvsError

ROW = """
[rows.{name}]
why = "a reason that is long enough to be one"
python = ["3.11", "3.10"]
cuda = "12.1"
driver = "530.30.02"
driver-minimum = "525.60.13"
architectures = ["sm_90"]
newest = {newest}

[rows.{name}.pins]
torch = "2.4.0"
transformers = "4.51.3"
huggingface-hub = "0.30.2"
tokenizers = "0.21.1"
accelerate = "1.6.0"
datasets = "3.5.1"
trl = "0.17.0"
peft = "0.15.2"
"""
GOOD = ROW.format(name="one", newest="true")


def load(tmp_path: Path, text: str):
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    return matrix.load(path)


def error(tmp_path: Path, text: str) -> str:
    with pytest.raises(EnvsError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("matrix.toml: ")
    return message


def test_a_row(tmp_path):
    (row,) = load(tmp_path, GOOD).values()
    assert row.name == "one"
    assert row.pythons == ("3.11", "3.10")
    assert row.pins["trl"] == "0.17.0"
    assert row.lock_name("3.10") == "one-py310.txt"


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("why", 'row one: the field "why" is missing'),
        ("python", 'row one: the field "python" is missing'),
        ("cuda", 'row one: the field "cuda" is missing'),
        ("driver", 'row one: the field "driver" is missing'),
        ("driver-minimum", 'row one: the field "driver-minimum" is missing'),
        ("architectures", 'row one: the field "architectures" is missing'),
        ("peft", "row one: the pin of peft is missing"),
        ("torch", "row one: the pin of torch is missing"),
    ],
)
def test_missing_field(tmp_path, field, says):
    lines = [line for line in GOOD.splitlines() if not line.startswith(f"{field} =")]
    assert says in error(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('cuda = "12.1"', 'cuda = "twelve"', "\"cuda\" is 'twelve'"),
        ('cuda = "12.1"', "cuda = 12.1", '"cuda" is 12.1'),
        ('driver = "530.30.02"', 'driver = "515.43.04"', '"driver" is older'),
        ('["3.11", "3.10"]', "[]", '"python" must be a list'),
        ('["3.11", "3.10"]', '["3.11", "3.11"]', '"python" names one twice'),
        ('["sm_90"]', '["hopper"]', "'hopper'"),
        ('torch = "2.4.0"', 'torch = "2.4.0+cpu"', "torch 2.4.0+cpu is a local build; pin 2.4.0"),
        ('torch = "2.4.0"', 'torch = "newest"', "torch 'newest' is not a version"),
        ("huggingface-hub =", "huggingface_hub =", "the pin of huggingface-hub is missing"),
        ("driver-minimum =", "driver-minimun =", '"driver-minimum" is missing'),
        ("newest = true", "newest = false", 'exactly one row must say "newest = true", 0 do'),
        ("newest = true", 'newst = "yes"', 'unknown field "newst"; did you mean "newest"?'),
        ("[rows.one]", "[rows.one", "at line 2"),
    ],
)
def test_wrong_field(tmp_path, old, new, says):
    assert old in GOOD
    assert says in error(tmp_path, GOOD.replace(old, new))


def test_two_rows_of_one_name(tmp_path):
    message = error(tmp_path, GOOD + ROW.format(name="one", newest="false"))
    assert "one" in message
    line = GOOD.count("\n") + 2  # where the second begins
    assert f"line {line}" in message


def test_a_pin_that_is_not_the_newest_says_why(tmp_path):
    other = ROW.format(name="two", newest="false").replace('trl = "0.17.0"', 'trl = "0.16.0"')
    assert "row two: say why trl is 0.16.0 (the newest row has 0.17.0)" in error(
        tmp_path, GOOD + other
    )
    reasoned = other.replace('trl = "0.16.0"', 'trl = { version = "0.16.0", why = "a test" }')
    assert load(tmp_path, GOOD + reasoned)["two"].reasons == {"trl": "a test"}


def test_unknown_row():
    with pytest.raises(EnvsError, match=r"no row 'tf541'; did you mean tf451\? The rows"):
        matrix.get_row(matrix.load(), "tf541")


def test_no_file(tmp_path):
    with pytest.raises(EnvsError, match="there is no such file"):
        matrix.load(tmp_path / "absent.toml")


def test_the_table_of_the_project():
    rows = matrix.load()
    assert next(iter(rows)) == "tf451"
    # what ZO2 was published with, its one uninstallable pin mended
    assert rows["tf451"].pins["transformers"] == "4.51.3"
    assert rows["tf451"].pins["huggingface-hub"] == "0.30.2"
    assert "sm_120" in rows["tf451-cu128"].architectures
    assert rows["tf451-cu128"].pins["transformers"] == rows["tf451"].pins["transformers"]
    assert rows["llama31"].pins["tokenizers"] == "0.20.3"

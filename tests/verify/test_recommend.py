"""Which row suits which machine."""

from __future__ import annotations

import pytest

from verify import rows
from verify.machine import Gpu, Machine
from verify.recommend import rank, runs_on

ROWS = rows.load()
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def gpu(major, minor, name="a GPU"):
    return Gpu(name, (major, minor), 80 * 2**30)


def names(machine, pythons=PYTHONS):
    return [choice.row.name for choice in rank(ROWS, machine, pythons) if choice.suits]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 9), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (10, 0), False),
        (["sm_100f"], (10, 3), True),
        (["compute_80"], (12, 0), True),
        (["compute_90"], (8, 0), False),
        (["sm_120"], (10, 0), False),
        (["sm_100", "sm_120"], (12, 1), True),
        ([], (8, 0), False),
    ],
)
def test_code_that_a_gpu_runs(architectures, capability, expected):
    assert runs_on(architectures, Gpu("x", capability, 1)) == expected


@pytest.mark.parametrize(
    ("driver", "capability", "best"),
    [
        ("595.50", (9, 0), "tf5"),
        ("580.65.06", (9, 0), "tf5-cu130"),
        ("580.65.06", (12, 0), "tf5-cu130"),
        ("570.26", (12, 0), "tf457"),
        ("550.54", (9, 0), "tf457"),
        ("535.104", (8, 6), "tf457"),
        ("595.50", (7, 0), "tf457"),
        ("595.50", (6, 1), "tf451"),
    ],
)
def test_the_best_row(driver, capability, best):
    machine = Machine((gpu(*capability),), driver=driver)
    choices = rank(ROWS, machine, PYTHONS)
    assert choices[0].suits
    assert choices[0].row.name == best
    assert len(choices) == len(ROWS)
    assert [c.suits for c in choices] == sorted((c.suits for c in choices), reverse=True)
    for choice in choices:
        assert choice.why.endswith(".")
        assert choice.python in choice.row.pythons


def test_no_gpu_gives_the_newest_row_whose_python_is_there():
    assert names(Machine())[0] == "tf5"
    assert names(Machine(), ("3.10",))[0] == "tf457"
    assert names(Machine(), ("3.9",)) == []


def test_all_gpus_have_to_be_served():
    mixed = Machine((gpu(9, 0), gpu(12, 0, "RTX 5090")), driver="595.50")
    refused = {c.row.name: c.why for c in rank(ROWS, mixed, PYTHONS) if not c.suits}
    assert set(refused) == {"tf451", "llama31"}
    assert "RTX 5090 is sm_120" in refused["tf451"]


def test_an_old_driver_refuses_everything_and_says_what_is_needed():
    choices = rank(ROWS, Machine((gpu(8, 0),), driver="470.57"), PYTHONS)
    assert not any(choice.suits for choice in choices)
    whys = {choice.row.name: choice.why for choice in choices}
    assert "525.60.13" in whys["tf451"]
    assert "580.65.06" in whys["tf5"]


def test_gpus_that_are_hidden_from_programs_count_too():
    hidden = Machine(managed=(gpu(6, 1),), driver="595.50")
    assert names(hidden)[0] == "tf451"


def test_a_driver_without_a_release_is_judged_by_its_cuda():
    wsl = Machine((gpu(8, 9),), driver_cuda=(12, 6), wsl=True)
    assert names(wsl)[0] == "tf457"
    assert "tf5" not in names(wsl)
    assert names(Machine((gpu(8, 9),))) == []

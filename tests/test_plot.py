"""``zo2 plot``: a picture of what a run measured."""

import json
import struct
import sys
from pathlib import Path

import pytest

from tests.test_cli import fails, zo2
from zo2.errors import DataError
from zo2.tasks import plotting


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"step": 0, "dev": {"accuracy": 0.5}}]
    lines += [{"step": n, "loss": 1 / n, "memory": 2**30 * n} for n in range(1, 5)]
    lines[-1]["dev"] = {"accuracy": 0.75}
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    trained = {
        "steps": [{"step": n, "loss": 2 / n} for n in range(1, 3)],
        "evals": [{"step": 0, "accuracy": 0.4, "loss": 1.0}],
    }
    Path("trained").mkdir()
    Path("trained/metrics.json").write_text(json.dumps(trained))


def test_a_curve_is_what_the_run_wrote(runs):
    curve = plotting.read_curve(Path("run"))
    assert [one["loss"] for one in curve.steps] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert (curve.evaluations, curve.figure) == ([(0, 0.5), (4, 0.75)], "accuracy")
    curve = plotting.read_curve(Path("trained"))
    assert [one["step"] for one in curve.steps] == [1, 2]
    assert curve.evaluations == [(0, 0.4)]


def test_a_running_mean_begins_with_what_there_is():
    assert plotting.running_mean([4, 2, 0, 10], 2) == [4, 3, 1, 5]
    assert plotting.running_mean([4, 2], 1) == [4, 2]
    assert plotting.running_mean([3, 5, 7], 9) == [3, 4, 5]


def test_the_picture_is_a_png_beside_the_run(runs):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'zo2[plot]'")
    done = zo2("plot", "run", "trained")
    assert done.exit_code == 0, done.output
    content = Path("run/plot.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (960, 960)
    assert sorted(one.name for one in Path("run").iterdir()) == ["metrics.jsonl", "plot.png"]
    assert zo2("plot", "trained", "--output", "one.png").exit_code == 0
    assert Path("one.png").read_bytes() != content
    fails(zo2("plot", "run", "--output", "none/one.png"), "no directory none", code=2)


def test_without_matplotlib_the_line_that_installs_it_is_given(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(zo2("plot", "run"), "pip install matplotlib", code=2)
    assert not Path("run/plot.png").exists()


def test_what_is_no_run_is_refused(runs, tmp_path):
    fails(zo2("plot", "."), "holds no run", code=2)
    fails(zo2("plot", "nowhere"), "There is no folder nowhere", code=2)
    Path("run/metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match="no step was taken"):
        plotting.read_curve(Path("run"))
    for number, (file, content) in enumerate((
        ("metrics.jsonl", '{"loss": 1}\n'), ("metrics.jsonl", "1\n"), ("metrics.json", "{}"),
    )):  # fmt: skip
        other = tmp_path / f"other-{number}"
        other.mkdir()
        (other / file).write_text(content)
        with pytest.raises(DataError, match="were not written by zo2"):
            plotting.read_curve(other)
    Path("run/metrics.jsonl").write_text('{"step": 0}\n{oops\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        plotting.read_curve(Path("run"))

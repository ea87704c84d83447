"""The scripts under examples/, run as they are on a tiny model."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local model has no page to look at
pytest.importorskip("transformers")

import transformers
from typer.testing import CliRunner

from tests import checkpoint
from zo2.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"
TUTORIAL = (EXAMPLES.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example with arguments in a folder of its own; gives what it printed."""

    def started(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        before = dict(os.environ)
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        finally:
            os.environ.clear()
            os.environ.update(before)
        return capsys.readouterr().out

    return started


@pytest.fixture
def model(tmp_path) -> str:
    return str(checkpoint.save(tmp_path / "model", positions=256))


SHORT = ("--steps", "3", "--batch-size", "4")


def test_custom_loop(run, model, tmp_path):
    printed = run("custom_loop.py", "--model", model, *SHORT, "--output", "out")
    assert re.search(r"step 2: loss \d", printed)
    assert re.search(r"right on \d+% of 80 unseen reviews", printed)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = transformers.AutoModelForCausalLM.from_pretrained(model)
    assert not loaded.lm_head.weight.equal(before.lm_head.weight)


def test_trainer(run, model, tmp_path):
    pytest.importorskip("accelerate")
    printed = run("trainer.py", "--model", model, *SHORT, "--output", "out")
    assert "eval_accuracy" in printed
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 2


def test_sft_trainer(run, model, tmp_path):
    for package in ("trl", "peft", "datasets"):
        pytest.importorskip(package)
    run("sft_trainer.py", "--model", model, *SHORT, "--output", "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_nanogpt_learns(run):
    printed = run("nanogpt.py", "--steps", "30", "--batch-size", "8")
    losses = [float(number) for number in re.findall(r"loss ([\d.]+) nats", printed)]
    assert losses[-1] < losses[0]


def commands() -> list[list[str]]:
    """The tutorial's commands but those that install, download or make folders."""
    blocks = re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    kept = (line for line in lines if line.startswith(("zo2 ", "python examples/")))
    return [shlex.split(line, comments=True) for line in kept]


def test_the_tutorials_commands(run, tmp_path, monkeypatch):
    for package in ("accelerate", "trl", "peft", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES, "examples")
    checkpoint.save(Path("models", "smollm2"), positions=256)
    reviews = Path("runs", "reviews")
    reviews.mkdir(parents=True)
    shutil.copy(EXAMPLES / "reviews.tsv", reviews / "train.tsv")
    shutil.copy(EXAMPLES / "reviews-test.tsv", reviews / "dev.tsv")
    ran = []
    for program, name, *arguments in commands():
        ran.append(name)
        if program == "python":
            run(Path(name).name, *arguments)
            continue
        if name == "run":  # words that are one token of the tiny model
            arguments += ["--label-words", "bad,great"]
        if name == "plot" and not find_spec("matplotlib"):
            continue
        done = CliRunner().invoke(app, [name, *arguments])
        assert done.exit_code == 0, done.output
    assert {"train", "run", "table", "plot"} <= set(ran)
    assert {f"examples/{one.name}" for one in EXAMPLES.glob("*.py")} == {
        *(name for name in ran if "/" in name),
        "examples/reviews.py",
    }


def test_the_tutorials_code(tmp_path, monkeypatch):
    code, _ = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)  # the other: test_mixin
    model = str(checkpoint.save(tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    preamble = "from transformers import AutoModelForCausalLM\nimport zo2\n"
    ids = checkpoint.tokenizer()("a fine film It was great", return_tensors="pt")["input_ids"]
    one = {"input_ids": ids, "labels": ids}
    steps = []
    names = {
        "args": SimpleNamespace(model=model),
        "batches": [one, one],
        "batch": one,
        "scheduler": SimpleNamespace(step=lambda: steps.append(1)),
    }
    exec(preamble + code.replace("[batch, ...]", "[batch, batch]"), names)
    assert len(steps) == names["model"].opt.steps == 2
    assert len(names["outputs"]) == 2
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import checkpoint
from zo2.cli import app

ROOT = Path(__file__).parent.parent
TEXTS = [
    ("a fine film", 1), ("the soup was good", 1), ("a good film", 1), ("fine soup", 1),
    ("a dull film", 0), ("the soup was bad", 0), ("a bad film", 0), ("dull soup", 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{text}\t{label}\n" for text, label in TEXTS)
    Path("train.tsv").write_text(lines * 2)
    Path("dev.tsv").write_text(lines)
    return tmp_path


def zo2(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200"})
    if not isinstance(result.exception, (SystemExit, type(None))):
        raise result.exception
    return result


def train(model, *more, data="train.tsv", dev="dev.tsv", steps=3):
    return zo2(
        "train", "--model", model, "--data", data, "--eval-data", dev, "--steps", steps,
        "--batch-size", 4, "--lr", 1e-3, "--device", "cpu", "--output", "out", *more,
    )  # fmt: skip


def fails(result, message, code=1):
    """The command failed with one line on stderr that says ``message``."""
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    return result


def reloaded_score(directory, questions="dev.tsv"):
    """Accuracy and loss by plain transformers, a text at a time, without zo2."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    hits, losses = [], []
    for line in Path(questions).read_text().splitlines():
        text, label = line.split("\t")
        scores = []
        for word in ("terrible", "great"):
            prompt = tokenizer(f"{text} It was", return_tensors="pt")["input_ids"]
            whole = tokenizer(f"{text} It was {word}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logs = model(input_ids=whole).logits[0].log_softmax(-1)
            places = range(prompt.shape[1], whole.shape[1])
            scores.append(sum(logs[place - 1, whole[0, place]] for place in places))
        scores = torch.stack(scores)
        hits.append(int(scores.argmax()) == int(label))
        losses.append(-float(scores.log_softmax(-1)[int(label)]))
    return sum(hits) / len(hits), sum(losses) / len(losses)


# -- a run


@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_training_saves_what_plain_transformers_reads(model, files, method):
    before = reloaded_score(model)
    result = train(model, "--method", method, "--eval-every", 2)
    assert result.exit_code == 0, result.output
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert [one["step"] for one in metrics["steps"]] == [1, 2, 3]
    assert [one["step"] for one in metrics["evals"]] == [0, 2, 3]
    assert metrics["interrupted"] is False
    assert metrics["settings"]["method"] == method
    assert metrics["settings"]["label_words"] == {"0": "terrible", "1": "great"}
    first, last = metrics["evals"][0], metrics["evals"][-1]
    assert (first["accuracy"], first["loss"]) == pytest.approx(before, abs=1e-4)
    assert (last["accuracy"], last["loss"]) == pytest.approx(reloaded_score("out"), abs=1e-4)
    assert last["loss"] != pytest.approx(first["loss"], abs=1e-4)  # something was learnt
    assert sorted(path.name for path in files.iterdir()) == ["dev.tsv", "out", "train.tsv"]
    assert list(Path("out").glob("*.safetensors"))
    again = zo2("eval", "--model", "out", "--data", "dev.tsv")
    assert f"8 examples: accuracy {last['accuracy']:.1%}, loss {last['loss']:.3f}" in again.output


def test_the_same_seed_gives_the_same_run_and_micro_batches_do_not_change_it(model, files):
    def losses(*more):
        assert train(model, "--overwrite", *more).exit_code == 0
        return [one["loss"] for one in json.loads(Path("out/metrics.json").read_text())["steps"]]

    base = losses()
    assert losses() == base
    assert losses("--micro-batches", 3) == pytest.approx(base, rel=1e-4)
    assert losses("--seed", 1) != pytest.approx(base, rel=1e-4)
    assert losses("--unit", "leaf") == base
    words = losses("--loss", "word")
    assert losses("--loss", "word", "--micro-batches", 3) == pytest.approx(words, rel=1e-4)
    assert words != pytest.approx(base, rel=1e-2)


def test_a_linear_schedule_falls_to_zero(model, files):
    train(model, "--lr-schedule", "linear", steps=4)
    steps = json.loads(Path("out/metrics.json").read_text())["steps"]
    assert [one["lr"] for one in steps] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_without_evaluation_data_a_fifth_is_held_out_and_said_so(model, files):
    result = zo2("train", "--model", model, "--data", "train.tsv", "--steps", 1, "--device", "cpu")
    assert "12 examples to train on, 4 to evaluate with (held out of the data" in result.output
    assert Path("zo2-output/metrics.json").is_file()
    result = zo2("train", "--model", model, "--data", "train.tsv", "--steps", 1, "--device", "cpu")
    assert Path("zo2-output-2/metrics.json").is_file()


def test_jsonl_and_label_words(model, files):
    records = [{"body": text, "stars": 5 * label} for text, label in TEXTS]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    fields = ("--text-field", "body", "--label-field", "stars")
    words = ("--label-words", "5=good soup,0=bad", "--template", "Review: {text}\nSo {label}")
    result = zo2("eval", "--model", model, "--data", "a.jsonl", *fields, *words)
    assert result.exit_code == 0, result.output
    assert "8 examples" in result.output
    words = ("--label-words", "a,b,c")
    fails(zo2("eval", "--model", model, "--data", "a.jsonl", *fields, *words), "3 label words")


def test_a_text_longer_than_the_model_takes_is_cut(model, files):
    Path("long.tsv").write_text(f"{'a fine film ' * 500}\t1\ndull\t0\n")
    assert train(model, data="long.tsv", dev="long.tsv", steps=1).exit_code == 0
    assert zo2("eval", "--model", model, "--data", "long.tsv", "--max-length", 999).exit_code == 0
    long = ("--template", "{text} when all was said and done It was")
    fails(
        zo2("eval", "--model", model, "--data", "dev.tsv", "--max-length", 8, *long),
        "no room for text within 8 tokens",
    )


# -- mistakes


def test_mistakes_are_one_line(model, files):
    Path("bad.tsv").write_text("fine\t1\nno label\n")
    Path("empty.tsv").write_text("")
    Path("other.tsv").write_text("fine\t1\ndull\t2\n")
    fails(train(model, data="bad.tsv"), r"bad\.tsv, line 2: expected text<TAB>label")
    fails(train(model, data="empty.tsv"), "empty.tsv holds no examples")
    fails(train(model, data="trian.tsv"), r"Did you mean train\.tsv\?")
    fails(train(model, dev="other.tsv"), r"other\.tsv, line 2: unknown label '2'")
    fails(train("./nothing"), "no file or directory ./nothing")
    fails(train(model, "--label-words", "great"), "at least two")
    fails(train(model, "--label-words", "0=bad,2=good"), "line 1: unknown label '1'")
    fails(train(model, "--template", "no text"), "must hold {text} exactly once")
    fails(train(model, "--directions", 4), "belongs to --method fzoo")
    fails(train(model, "--direction", "sideways"), "sideways")
    fails(train(model, "--eps", 0), "eps must be greater than 0")
    fails(train(model, "--micro-batches", 9), "9 micro-batches")
    assert not Path("out").exists()


def test_misuse_is_exit_code_2(model, files):
    for wrong in (["--steps", "0"], ["--dtype", "int8"], ["--nonsense"]):
        assert train(model, *wrong).exit_code == 2
    assert zo2("train").exit_code == 2


def test_a_gpu_that_is_not_there_is_refused(model, files):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    fails(train(model, "--device", "cuda"), "sees no GPU; use --device cpu")


def test_debug_shows_the_traceback(model, files):
    result = train(model, "--debug", data="none.tsv")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "There is no file none.tsv" in result.stderr


def test_an_output_that_is_taken_is_refused_before_training(model, files):
    Path("out").mkdir()
    assert train(model, steps=1).exit_code == 0  # an empty directory is free
    weights = Path("out/model.safetensors").read_bytes()
    fails(train(model, steps=2), "holds an earlier run.*--overwrite")
    assert Path("out/model.safetensors").read_bytes() == weights
    assert train(model, "--overwrite", steps=2).exit_code == 0
    assert Path("out/model.safetensors").read_bytes() != weights
    Path("out/metrics.json").unlink()
    fails(train(model, "--overwrite"), "was not written by zo2")


def test_a_failed_save_leaves_the_earlier_model(model, files, monkeypatch):
    import transformers

    assert train(model, steps=1).exit_code == 0
    weights = Path("out/model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    fails(train(model, "--overwrite", steps=2), "No space left on device")
    assert Path("out/model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in files.iterdir()) == ["dev.tsv", "out", "train.tsv"]


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_the_last_good_weights(model, files):
    result = train(model, "--lr", "1e40", steps=9)  # beyond float32, whatever the direction
    assert result.exit_code == 1
    assert "losses are not finite" in result.stderr
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert 1 <= len(metrics["steps"]) < 9


# -- processes


def command(*arguments, **kwargs):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "zo2", *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def test_ctrl_c_ends_after_the_step_and_saves(model, files):
    process = command(
        "train", "--model", model, "--data", "train.tsv", "--eval-data", "dev.tsv", "--steps",
        1_000_000, "--device", "cpu", "--output", "out",
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("Step 1/"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Stopping after this step" in errors
    assert "Traceback" not in errors
    assert "Saved: out" in output
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["interrupted"] is True
    assert 1 <= len(metrics["steps"]) < 1_000_000
    reloaded_score("out")


def test_help_and_mistakes_load_neither_torch_nor_transformers(files):
    script = (
        "import sys; from typer.testing import CliRunner; from zo2.cli import app\n"
        "for arguments in (['--help'], ['train', '--help'], ['--version'],"
        " ['eval', '--model', 'x', '--data', 'none.tsv']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_has_an_example_and_every_option_says_what_it_does():
    text = zo2("train", "--help").output
    assert "zo2 train --model smollm2 --data examples/reviews.tsv" in text
    import inspect

    from zo2 import cli

    for name in inspect.signature(cli.train).parameters:
        option = {"data_file": "data"}.get(name, name).replace("_", "-")
        assert f"--{option}" in text
    assert zo2("--version").output.strip()


def test_the_examples_are_balanced_and_distinct():
    from zo2.data import read_examples

    train_set = read_examples(ROOT / "examples" / "reviews.tsv")
    test_set = read_examples(ROOT / "examples" / "reviews-test.tsv")
    texts = [one.text for one in train_set + test_set]
    assert len(set(texts)) == len(texts) == 320
    for part in (train_set, test_set):
        assert sum(one.label == "1" for one in part) * 2 == len(part)

"""``zo2 run`` and ``zo2 table``: runs from data to results, resumed, compared, and gone wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checkpoint
from tests.test_cli import TEXTS, fails, zo2

WORDS = ("--label-words", "dull,great")  # one token each of the tiny tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("sst2").mkdir()
    lines = [f"{text}\t{label}\n" for text, label in TEXTS]
    Path("sst2/train.tsv").write_text("".join(lines * 2))
    Path("sst2/dev.tsv").write_text("".join(lines))
    return tmp_path


def arguments(model, *more, task="SST2", words=WORDS, steps=4):
    return (
        "run", "--task", task, "--model", model, "--data-dir", task.lower(), "--steps", steps,
        "--batch-size", 4, "--lr", 1e-3, "--num-dev", 4, "--device", "cpu", "--output", "out",
        *words, *more,
    )  # fmt: skip


def run(model, *more, **kwargs):
    return zo2(*arguments(model, *more, **kwargs))


def mistake(result, message):
    return fails(result, message, code=2)


def read(path="out/results.json"):
    return json.loads(Path(path).read_text())


def metrics(path="out/metrics.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights(directory):
    from safetensors.torch import load_file

    return load_file(Path(directory) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


# -- a run


@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_a_run_leaves_settings_metrics_results_and_the_best_model(model, files, method):
    result = run(model, "--method", method, "--eval-every", 2)
    assert result.exit_code == 0, result.output
    assert "SST2: 12 examples to train on, 4 to choose by, 8 to test on" in result.output
    assert sorted(one.name for one in Path("out").iterdir()) == [
        "config.json", "metrics.jsonl", "model", "results.json",
    ]  # fmt: skip
    config = read("out/config.json")
    assert (config["task"], config["method"], config["eps"]) == ("SST2", method, 1e-3)
    lines = metrics()
    assert [one["step"] for one in lines] == [0, 1, 2, 3, 4]
    assert [one["step"] for one in lines if "dev" in one] == [0, 2, 4]
    assert all({"loss", "seconds", "memory"} <= one.keys() for one in lines[1:])
    results = read()
    evaluated = {one["step"]: one["dev"] for one in lines if one["step"] and "dev" in one}
    best = max(evaluated, key=lambda step: (evaluated[step]["accuracy"], -step))
    assert (results["best_step"], results["dev"]) == (best, evaluated[best])
    assert (results["task"], results["steps"], results["lr"]) == ("SST2", 4, 1e-3)
    # the model that was kept gives the figures that were reported
    again = zo2(
        "run", "--task", "SST2", "--mode", "zero-shot", "--model", "out/model", "--data-dir",
        "sst2", "--num-dev", 4, "--output", "again", *WORDS,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert (read("again/results.json")["dev"], read("again/results.json")["test"]) == (
        results["dev"], results["test"],
    )  # fmt: skip
    assert "steps" not in read("again/results.json")


def test_in_context_shows_examples_and_takes_no_step(model, files, monkeypatch):
    from zo2.tasks import prediction

    asked, score = [], prediction.choice_scores
    monkeypatch.setattr(
        prediction,
        "choice_scores",
        lambda model, questions, pad: asked.extend(questions) or score(model, questions, pad),
    )
    few = ("--mode", "in-context", "--demonstrations", 2)
    assert run(model, *few).exit_code == 0
    prompts = [checkpoint.tokenizer().decode(one[0].tokens[: one[0].start]) for one in asked]
    shown = [prompt.split("\n\n")[:-1] for prompt in prompts]
    assert all(len(one) == 2 for one in shown)
    labels = {text: WORDS[1].split(",")[label] for text, label in TEXTS}
    texts = [text.split(" It was ") for one in shown for text in one]
    assert all(labels[text] == word for text, word in texts)
    assert len({tuple(one) for one in shown}) > 1
    assert not Path("out/model").exists()
    assert read()["mode"] == "in-context"
    fails(run(model), "holds an earlier run.*--overwrite", code=2)
    assert run(model, "--mode", "zero-shot", "--overwrite").exit_code == 0


@pytest.mark.parametrize("mode", ["ft", "lora", "prefix"])
def test_a_generation_task_runs(model, files, mode):
    if mode != "ft":
        pytest.importorskip("peft")
    Path("squad").mkdir()
    question = {"id": "1", "question": "soup?", "answers": [{"text": "good", "answer_start": 0}]}
    paragraph = {"context": "good soup", "qas": [question] * 6}
    content = json.dumps({"data": [{"title": "soup", "paragraphs": [paragraph]}]})
    for name in ("train", "dev"):
        Path(f"squad/{name}-v1.1.json").write_text(content)
    few = ("--num-dev", 1, "--num-test", 2, "--mode", mode)
    result = run(model, *few, task="SQuAD", words=(), steps=1)
    assert result.exit_code == 0, result.output
    assert set(read()["test"]) == {"f1", "em"}


@pytest.mark.parametrize("mode", ["lora", "prefix"])
def test_adapters_alone_are_trained_and_saved(model, files, mode):
    pytest.importorskip("peft")
    result = run(model, "--mode", mode, steps=2)
    assert result.exit_code == 0, result.output
    assert (Path("out/model") / "adapter_model.safetensors").exists()
    assert not (Path("out/model") / "model.safetensors").exists()
    assert read("out/config.json")["eps"] == {"lora": 1e-2, "prefix": 1e-1}[mode]


def test_without_peft_the_line_that_installs_it_is_given(model, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    mistake(run(model, "--mode", "lora"), "needs the package peft: pip install peft")


# -- checkpoints


def test_a_resumed_run_is_the_run_that_was_never_interrupted(model, files, monkeypatch):
    from zo2.tasks import folder

    assert run(model, "--eval-every", 0).exit_code == 0
    whole, losses = weights("out/model"), [one.get("loss") for one in metrics()]
    shutil.move("out", "whole")

    save = folder.RunFolder.save_checkpoint

    def interrupted(self, loaded, state):
        save(self, loaded, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(folder.RunFolder, "save_checkpoint", interrupted)
    assert run(model, "--eval-every", 0, "--save-every", 1).exit_code == 130
    monkeypatch.undo()
    os.chdir(files)
    with open("out/metrics.jsonl", "a") as file:  # steps after the checkpoint, the last not whole
        file.write(json.dumps({"step": 3, "loss": 9.0}) + '\n{"step": 4, "lo')
    assert not Path("out/results.json").exists()
    assert run(model, "--eval-every", 0, "--resume").exit_code == 0
    assert [one.get("loss") for one in metrics()] == losses
    assert same(weights("out/model"), whole)
    assert not Path("out/checkpoint").exists()
    assert "is complete" in run(model, "--eval-every", 0, "--resume").output


def test_ctrl_c_ends_after_the_step_and_the_run_goes_on(model, files, monkeypatch):
    from zo2.tasks import folder

    assert run(model, "--eval-every", 0).exit_code == 0
    whole = weights("out/model")
    shutil.move("out", "whole")

    log = folder.RunFolder.log

    def interrupted(self, line):
        log(self, line)
        if line["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(folder.RunFolder, "log", interrupted)
    result = run(model, "--eval-every", 0)
    monkeypatch.undo()
    os.chdir(files)
    assert result.exit_code == 130, result.output
    assert "--resume goes on" in result.output
    assert read("out/checkpoint/state.json")["step"] == 2
    assert run(model, "--eval-every", 0, "--resume").exit_code == 0
    assert same(weights("out/model"), whole)


@pytest.fixture
def in_the_foreground():
    """Ctrl-C is heeded, which it is not by what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("mode", ["zero-shot", "ft"])
def test_what_ends_at_once_leaves_no_results(model, files, monkeypatch, mode):
    """Ctrl-C where nothing is trained, and a second one where something is."""
    from zo2.tasks.prediction import Exam

    def interrupted(*given):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Exam, "answers", interrupted)
    result = run(model, "--mode", mode)
    assert result.exit_code == 130, result.output
    assert "--resume goes on" in result.output
    assert not Path("out/results.json").exists()


def test_a_run_that_fails_at_its_test_need_not_be_trained_again(model, files, monkeypatch):
    from zo2.tasks.folder import RunFolder

    def broken(self, results):
        raise OSError("no room for the results")

    monkeypatch.setattr(RunFolder, "finish", broken)
    fails(run(model, "--save-every", 4), "no room for the results")
    monkeypatch.undo()
    os.chdir(files)
    assert read("out/checkpoint/state.json")["step"] == 4
    result = run(model, "--save-every", 4, "--resume")
    assert result.exit_code == 0, result.output
    assert "Step 1/4" not in result.output
    assert read()["steps"] == 4


def test_without_output_resume_takes_the_run_begun_last(model, files):
    def nameless(*more):
        given = list(arguments(model, "--mode", "zero-shot", *more))
        place = given.index("--output")
        return zo2(*given[:place], *given[place + 2 :])

    for place in ("runs/SST2-zero-shot", "runs/SST2-zero-shot-2"):
        assert f"Results: {place}\n" in nameless().output
    assert "runs/SST2-zero-shot-2 is complete" in nameless("--resume").output


def test_a_run_cannot_go_on_as_another(model, files, tmp_path_factory):
    stopped(model)
    other = checkpoint.save(tmp_path_factory.mktemp("other"), seed=1)
    again = ("--eval-every", 0, "--resume")
    mistake(run(other, *again), "was run otherwise: model was .* now")
    mistake(run(model, *again, "--seed", 5), "seed was 0, now 5")
    # the right settings, but somebody else's checkpoint
    Path("out/checkpoint/model.safetensors").unlink()
    checkpoint.llama(tied=True).save_pretrained("out/checkpoint")
    mistake(run(model, *again), "checkpoint is a checkpoint of another model")


def stopped(model):
    """A run that was killed after its checkpoint at step 2."""
    assert run(model, "--save-every", 2, "--eval-every", 0).exit_code == 0
    from zo2.loading import load, resolve
    from zo2.tasks.folder import RunFolder

    folder = RunFolder(Path("out"))
    Path("out/results.json").unlink()
    folder.save_checkpoint(load(resolve("out/model")), {"step": 2, "seconds": 1.0})


def test_a_full_disk_leaves_the_checkpoint_before_whole(model, files):
    """With a limit on the size of files, which a full disk is to a writer."""
    stopped(model)
    before = {path.name: path.read_bytes() for path in Path("out/checkpoint").iterdir()}
    script = (
        "import resource, signal, sys; from zo2.cli import app\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "app(sys.argv[1:])"
    )
    more = ("--save-every", 1, "--eval-every", 0, "--resume")
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments(model, *more))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "The checkpoint could not be saved" in done.stderr
    assert "the one saved before it is whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name: p.read_bytes() for p in Path("out/checkpoint").iterdir()} == before
    assert sorted(one.name for one in Path("out").iterdir()) == [
        "checkpoint", "config.json", "metrics.jsonl", "model",
    ]  # fmt: skip
    assert run(model, *more).exit_code == 0


# -- grids and tables


def test_a_grid_takes_the_best_on_dev_and_keeps_its_model_alone(model, files):
    result = run(model, "--grid", "lr=1e-3,1e-2", "--grid", "eps=1e-3,1e38", steps=2)
    assert result.exit_code == 0, result.output
    results = read()
    tried = {(one["lr"], one["eps"]): one for one in results["grid"]}
    assert set(tried) == {(lr, eps) for lr in (1e-3, 1e-2) for eps in (1e-3, 1e38)}
    assert all("not finite" in one["failed"] for key, one in tried.items() if key[1] == 1e38)
    fine = [one for one in results["grid"] if "dev" in one]
    best = max(fine, key=lambda one: one["dev"]["accuracy"])
    assert (results["lr"], results["dev"]) == (best["lr"], best["dev"])
    kept = [path.parent.name for path in Path("out").glob("*/model")]
    assert kept == [f"lr={results['lr']:g},eps={results['eps']:g}"]
    assert run(model, "--overwrite", steps=1).exit_code == 0
    assert not list(Path("out").glob("lr=*"))
    assert run(model, "--grid", "lr=1e-3,0.001", "--overwrite", steps=1).exit_code == 0
    assert len(read()["grid"]) == 1
    mistake(run(model, "--grid", "momentum=1", "--overwrite"), "--grid momentum=1: give paper, lr=")
    mistake(run(model, "--grid", "lr=-1", "--overwrite"), "lr must be a finite number >= 0")
    mistake(run(model, "--grid", "lr=a", "--overwrite"), "'a' are not numbers")
    mistake(run(model, "--grid", "paper", "--mode", "zero-shot", "--overwrite"), "does not train")


def test_the_papers_settings_are_the_defaults():
    from zo2.tasks.settings import complete, grid

    def settings(mode, method="mezo-sgd", **given):
        fields = complete.__globals__["Settings"].__dataclass_fields__
        values = {**dict.fromkeys(fields), "task": "RTE", "model": "m", "mode": mode}
        values |= {"method": method, "steps": 20_000, "batch_size": 16, "micro_batches": 1}
        values["seed"] = 0
        return complete({**values, **given})

    found = {mode: settings(mode) for mode in ("ft", "lora", "prefix")}
    assert {mode: one.eps for mode, one in found.items()} == {
        "ft": 1e-3, "lora": 1e-2, "prefix": 1e-1,
    }  # fmt: skip
    assert {mode: [one.lr for one in grid(found[mode], ["paper"])] for mode in found} == {
        "ft": [1e-6, 1e-7], "lora": [1e-4, 5e-5], "prefix": [1e-2, 1e-3],
    }  # fmt: skip
    questions = {mode: settings(mode, task="SQuAD") for mode in found}
    assert {mode: [one.lr for one in grid(questions[mode], ["paper"])] for mode in found} == {
        "ft": [1e-6, 5e-7, 1e-7], "lora": [1e-4, 5e-5, 1e-5], "prefix": [5e-2, 1e-2, 5e-3],
    }  # fmt: skip
    assert {mode: one.lr for mode, one in questions.items()} == {
        "ft": 1e-6, "lora": 1e-4, "prefix": 1e-2,
    }  # fmt: skip
    assert found["ft"].eval_every == found["ft"].save_every == 4000
    assert settings("ft", lr=5.0, eval_every=0).lr == 5.0
    assert settings("ft", eval_every=0).eval_every == 0
    from zo2.errors import ConfigError

    with pytest.raises(ConfigError, match="No learning rate is known for --method fzoo"):
        settings("lora", "fzoo")
    with pytest.raises(ConfigError, match="micro-batches need"):
        settings("ft", micro_batches=17)


def results(place, task, value, metric="accuracy", **more):
    content = {"task": task, "metric": metric, "model": "m", "mode": "ft", "method": "mezo-sgd"}
    content["seed"] = 0
    figures = {"test": {metric: value}, "dev": {metric: value / 2}}
    path = Path(place) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**content, **figures, **more}))


def test_a_table_wider_than_the_terminal_is_split_between_tasks():
    from zo2.tasks.table import Table

    header = ["", "SST2 (accuracy)", "RTE (accuracy)", "SQuAD (f1)"]
    rows = [["zero-shot", "60.0", "-", "90.0"], ["MeZO", "93.0 ± 2.8", "70.0", "-"]]
    whole = Table("m", header, rows)
    assert whole.split(80) == [whole]
    # zero-shot and (accuracy), twice, and 90.0, with three characters each around them, and a frame
    assert whole.split(9 + 10 + 10 + 5 + 4 * 3 + 1) == [whole]
    last = Table("m", ["", "SQuAD (f1)"], [["zero-shot", "90.0"], ["MeZO", "-"]])
    both = Table("m", header[:3], [row[:3] for row in rows])
    assert whole.split(9 + 10 + 10 + 5 + 4 * 3) == [both, last]
    assert [one.header[1:] for one in whole.split(1)] == [[name] for name in header[1:]]


def test_a_folder_of_results_prints_as_the_papers_table(files):
    results("r/a", "SQuAD", 0.9, metric="f1")
    results("r/b/seed0", "SST2", 0.91)
    results("r/b/seed1", "SST2", 0.95, seed=1)
    results("r/b/seed1-other-lr", "SST2", 0.94, seed=1)  # not so good on dev
    results("r/c", "SST2", 0.6, mode="zero-shot")
    results("r/c/trial", "SST2", 0.1)  # a grid's trial: its best stands above it
    results("r/d", "SST2", 0.8, mode="lora")
    results("r/e", "SST2", 0.7, model="n", method="fzoo")
    done = zo2("table", "r", "--markdown")
    assert done.exit_code == 0, done.output
    assert done.output == (
        "m, test, in %\n\n"
        "|  | SST2 (accuracy) | SQuAD (f1) |\n"
        "| --- | --- | --- |\n"
        "| zero-shot | 60.0 | - |\n"
        "| MeZO | 93.0 ± 2.8 | 90.0 |\n"
        "| MeZO (lora) | 80.0 | - |\n\n"
        "n, test, in %\n\n"
        "|  | SST2 (accuracy) |\n"
        "| --- | --- |\n"
        "| FZOO | 70.0 |\n\n"
    )
    text = zo2("table", "r", "--part", "dev").output
    assert "46.5" in text
    assert "zero-shot" in text
    Path("alien").mkdir()
    Path("alien/results.json").write_text('{"results": 1}')
    mistake(
        zo2("table", "alien"), "alien/results.json was not written by zo2 run: it has no 'task'"
    )
    Path("empty").mkdir()
    mistake(zo2("table", "empty"), "holds no results.json")
    mistake(zo2("table", "nothing"), "no directory nothing")


# -- mistakes


def test_mistakes_are_one_line_and_exit_code_2(model, files):
    mistake(run(model, task="SST3"), "no task 'SST3'. Did you mean SST2")
    mistake(run(model, task="RTE"), "no directory rte")
    shutil.copytree("sst2", "rte")
    mistake(run(model, task="RTE"), "no train.jsonl in rte .*needed are train.jsonl and val.jsonl")
    mistake(run(model, words=()), r"'terrible' is 2 tokens of this model \(' ter', 'rible'\)")
    mistake(run(model, words=("--label-words", "a,b,c")), "3 label words .* for the 2 labels")
    mistake(run(model, "--max-length", 4096), "sequences of this model may have at most 128 tokens")
    mistake(run(model, "--num-train", 0), "no training examples are left.*--num-train is 0")
    mistake(run(model, "--num-dev", 16), "since 16 were set aside to choose by")
    mistake(run("./nothing"), "no file or directory ./nothing")
    mistake(run(model, "--directions", 3), "belongs to --method fzoo")
    mistake(run(model, "--direction", "sideways"), "sideways")
    mistake(run(model, "--lr", -1e-3), "lr must be a finite number >= 0, not -0.001")
    mistake(run(model, "--eps", 0), "eps must be greater than 0")
    mistake(run(model, "--seed", 2**32), "--seed 4294967296: .* below 2\\^32")
    mistake(run(model, task="SQuAD"), "SQuAD has answers of its own, no label words")
    Path("sst2/dev.tsv").write_text("no label\n")
    mistake(run(model), r"dev\.tsv, line 1: expected text<TAB>label")
    assert not Path("out").exists()
    for result, option in (
        (zo2("run", "--model", model), "--task"),
        (run(model, steps=0), "--steps"),
    ):
        assert result.exit_code == 2
        assert option in result.stderr


def test_what_is_no_run_is_neither_overwritten_nor_gone_on_with(model, files):
    def content(place):
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}

    shutil.copytree(model, "out")
    kept = content("out")
    for more in ((), ("--overwrite",), ("--resume",)):
        mistake(run(model, *more), "config.json that is not a run's, as models have")
    assert content("out") == kept
    shutil.rmtree("out")
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite",), ("--resume",)):
        mistake(run(model, *more), "out exists and was not written by zo2")
    shutil.rmtree("out")
    result = run(model, "--mode", "zero-shot", "--resume")
    assert "There is no run in out to go on with; this begins one." in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize("more", [(), ("--grid", "lr=1e-3,1e-4")])
def test_a_mistake_found_late_leaves_nothing(model, files, more):
    Path("sst2/train.tsv").write_text("")
    mistake(run(model, *more), "train.tsv holds no examples")
    shutil.copy("sst2/dev.tsv", "sst2/train.tsv")
    mistake(run(model, *more, words=("--label-words", "utterly bad,fine")), "'utterly bad' is")
    assert not Path("out").exists()


def test_a_question_longer_than_the_model_takes_is_refused(model, files):
    Path("rte").mkdir()
    record = {"premise": "soup", "hypothesis": "good soup " * 80, "label": "entailment"}
    for name in ("train", "val"):
        Path(f"rte/{name}.jsonl").write_text((json.dumps(record) + "\n") * 6)
    mistake(run(model, task="RTE"), "which stay whole, have more than 128 tokens")

"""ZOTrainer in the installed transformers: steps, runs, checkpoints, messages."""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local model has no page to look at
pytest.importorskip("accelerate")

import transformers
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend
from packaging.version import Version
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

import zo2
from tests.oracle import naive_mezo
from tests.test_compiled import compiling, graphs, in_place  # noqa: F401
from tests.test_engine import CPU
from tests.test_logits import set_chunk
from tests.tiny import FAMILIES, batch, tiny
from tests.trainers import UNATTENDED, Log
from zo2 import logits
from zo2.engine.placement import Placement
from zo2.errors import CheckpointError
from zo2.trainer.hf_transformers.trainer import ZOTrainer
from zo2.trainer.options import check_accelerator

STREAMED = Placement(slots=2, copies=True)
ROWS = 12


@pytest.fixture(autouse=True)
def as_it_was():
    """Undo what training arguments leave in the environment for accelerate."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)


def data(model, rows: int = ROWS, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    """Examples for ``model``, of one length, some with padding."""
    both = batch(model, n=rows, seed=7, padded=padded)
    return [{name: value[row] for name, value in both.items()} for row in range(rows)]


def arguments(folder, **changes) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        **UNATTENDED,
        "lr_scheduler_type": "constant",
        **changes,
    }
    return TrainingArguments(str(folder), **settings)


def settings(**changes):
    return zo2.ZOConfig(**{**CPU, "lr": 1e-2, "weight_decay": 0.0, "seed": 3, **changes})


def trainer(model, folder, changes=None, train=None, zo_config=None, **kwargs):
    """A ZOTrainer with a `Log` in ``.log_seen``; the model is prepared by it if it is not yet."""
    seen = Log()
    made = ZOTrainer(
        model,
        arguments(folder, **(changes or {})),
        train_dataset=train if train is not None else data(model),
        zo_config=None if hasattr(model, "zo_training") else zo_config or settings(),
        callbacks=[seen, *kwargs.pop("callbacks", [])],
        **kwargs,
    )
    made.log_seen = seen
    return made


def joined(batches):
    return {name: torch.cat([one[name] for one in batches]) for name in batches[0]}


# -- steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("family", "head"), [("llama", "causal"), ("opt", "causal"), ("llama", "sequence")]
)
def test_steps_and_logged_losses_are_those_of_plain_mezo(family, head, micro_batches, tmp_path):
    model = tiny(family, head)  # OPT's has dropout
    plain, seen = copy.deepcopy(model), []
    made = trainer(
        model,
        tmp_path,
        {"gradient_accumulation_steps": micro_batches, "max_steps": 2},
        zo_config=settings(eps=1e-2),
    )

    def note(model, inputs):
        seen.append({k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)})

    made.register_zo2_training_step_pre_hook(note)
    made.train()
    assert len(seen) == 2 * micro_batches
    steps = [joined(seen[i : i + micro_batches]) for i in range(0, len(seen), micro_batches)]
    losses, expected = naive_mezo(plain, steps, lr=1e-2, eps=1e-2, seed=3)
    assert made.log_seen.values("loss") == pytest.approx([plus for plus, _ in losses], abs=6e-5)
    for name, value in expected.items():
        assert torch.allclose(model.get_parameter(name), value, atol=2e-5), name


def test_a_step_of_fewer_micro_batches_is_one_on_all_of_them(tmp_path):
    model = tiny("llama")
    plain, steps = copy.deepcopy(model), [[]]
    made = trainer(
        model,
        tmp_path,
        {"gradient_accumulation_steps": 4, "max_steps": 3},
        data(model, 11),  # five batches of two and one of one
        zo_config=settings(eps=1e-2),
    )
    made.register_zo2_training_step_pre_hook(lambda model, inputs: steps[-1].append(dict(inputs)))
    made.register_zo2_training_step_post_hook(lambda model, inputs, loss: steps.append([]))
    made.train()
    taken = [joined(step) for step in steps if step]
    assert len(taken) == 3
    assert len({len(one["input_ids"]) for one in taken}) > 1
    losses, expected = naive_mezo(plain, taken, lr=1e-2, eps=1e-2, seed=3)
    assert made.log_seen.values("loss") == pytest.approx([plus for plus, _ in losses], abs=6e-5)
    for name, value in expected.items():
        assert torch.allclose(model.get_parameter(name), value, atol=2e-5), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_by_hand(family, tmp_path):
    model = tiny(family)
    twin = zo2.prepare(copy.deepcopy(model), settings())
    made, seen = trainer(model, tmp_path, {"max_steps": 2}), []
    made.register_zo2_training_step_pre_hook(lambda model, inputs: seen.append(dict(inputs)))
    made.train()
    for one in seen:
        twin.zo_step([one])
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_step_holds_no_logits_that_only_the_models_loss_reads(tmp_path, monkeypatch):
    class Own(ZOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(**inputs)
            kinds.append(type(outputs.logits))
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    def losses(kind, folder):
        made = kind(
            tiny("llama"),
            arguments(folder),
            train_dataset=data(tiny("llama")),
            zo_config=settings(eps=1e-2),
            callbacks=[log := Log()],
        )
        made.train()
        return log.values("loss")

    expected, kinds, chunks = losses(ZOTrainer, tmp_path), [], []
    cross_entropy = logits.Logits.cross_entropy
    set_chunk(monkeypatch, 1)
    monkeypatch.setattr(
        logits.Logits, "cross_entropy", lambda *args: chunks.append(1) or cross_entropy(*args)
    )
    with monkeypatch.context() as patch:
        patch.setattr(logits.Logits, "whole", lambda self: pytest.fail("all logits were made"))
        assert losses(ZOTrainer, tmp_path) == pytest.approx(expected, abs=6e-5)
    assert len(chunks) == 9  # two passes of four steps, and one to be recorded
    assert losses(Own, tmp_path) == pytest.approx(expected, abs=6e-5)
    assert set(kinds) == {torch.Tensor}


def test_blocks_may_be_compiled(tmp_path, graphs):  # noqa: F811
    model = tiny("llama")
    plain = trainer(copy.deepcopy(model), tmp_path)
    plain.train()
    in_place(model.model.layers, compiling(graphs))
    compiled = trainer(model, tmp_path)
    compiled.train()
    assert graphs
    assert compiled.log_seen.values("loss") == plain.log_seen.values("loss")
    expected = dict(plain.model.named_parameters())
    assert all(torch.equal(expected[name], one) for name, one in model.named_parameters())


def test_a_subclass_that_scales_its_loss_itself(tmp_path):
    class Scaled(ZOTrainer):
        loss_is_scaled_for_ga = True

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs["labels"]
            counts.append(int(num_items_in_batch))
            return functional.cross_entropy(
                model(**inputs).logits[:, :-1].flatten(0, 1),
                labels[:, 1:].flatten(),
                reduction="sum",
            ) / int(num_items_in_batch)

    counts, seen = [], []
    model = tiny("llama")
    plain = copy.deepcopy(model)
    made = Scaled(
        model,
        arguments(tmp_path, max_steps=1, gradient_accumulation_steps=3),
        train_dataset=data(model),
        zo_config=settings(eps=1e-7),
        callbacks=[log := Log()],
    )
    made.register_zo2_training_step_pre_hook(lambda model, inputs: seen.append(dict(inputs)))
    made.train()
    with torch.no_grad():
        mean = plain(**joined(seen)).loss.item()
    labels = int((joined(seen)["labels"][:, 1:] != -100).sum())
    assert log.values("loss") == pytest.approx([mean * labels / counts[0]], abs=6e-5)


def test_micro_batches_share_one_sweep_of_the_weights(tmp_path):
    model = zo2.prepare(tiny("llama"), settings(), placement=STREAMED)
    options = {"gradient_accumulation_steps": 4, "max_steps": 3}
    made = trainer(model, tmp_path, options, data(model, 24))
    engine, sweeps = model._zo.engine, []
    sweep = engine.sweep
    engine.sweep = lambda jobs, *args: sweeps.append(len(jobs)) or sweep(jobs, *args)
    made.train()
    assert sweeps == [8, 8, 8]
    assert model.opt.steps == 3


def test_label_smoothing_is_computed_as_the_trainer_does(tmp_path):
    model = tiny("llama")
    plain, seen = copy.deepcopy(model), []
    made = trainer(
        model,
        tmp_path,
        {"label_smoothing_factor": 0.2, "max_steps": 1},
        data(model, padded=False),
        zo_config=settings(eps=1e-7),
    )
    made.register_zo2_training_step_pre_hook(lambda model, inputs: seen.append(dict(inputs)))
    made.train()
    with torch.no_grad():
        logits = plain(input_ids=seen[0]["input_ids"]).logits[:, :-1].flatten(0, 1)
    labels = seen[0]["labels"][:, 1:].flatten()
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2)
    assert made.log_seen.values("loss") == pytest.approx([expected.item()], abs=6e-5)


def test_bfloat16_autocast_runs_and_keeps_the_weights_precision(tmp_path):
    model = tiny("llama")
    reference = trainer(copy.deepcopy(model), tmp_path, {"max_steps": 2})
    reference.train()
    made = trainer(model, tmp_path, {"bf16": True, "max_steps": 2})
    made.train()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    losses = made.log_seen.values("loss")
    assert losses == pytest.approx(reference.log_seen.values("loss"), rel=1e-2)
    assert losses != reference.log_seen.values("loss")


@pytest.mark.parametrize("way", ["custom", "compute_loss_func", "compute_loss"])
def test_objectives_that_nothing_can_be_differentiated_through(way, tmp_path):
    def wrong(logits, labels):
        missed = logits[:, :-1].argmax(-1) != labels[:, 1:]
        return missed.masked_fill(labels[:, 1:] == -100, False).sum().item()

    def count(labels):
        return (labels[:, 1:] != -100).sum().item()

    class ErrorRate(ZOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            return wrong(model(**inputs).logits, labels) / count(labels)

    def error_rate(outputs, labels, num_items_in_batch=None):
        return wrong(outputs.logits, labels) / (num_items_in_batch or count(labels))

    model = tiny("llama")
    plain, seen = copy.deepcopy(model), []
    kind, extra = ZOTrainer, {}
    if way == "compute_loss":
        kind = ErrorRate
    if way == "compute_loss_func":
        extra = {"compute_loss_func": error_rate}
    made = kind(
        model,
        arguments(tmp_path, max_steps=1, gradient_accumulation_steps=2),
        train_dataset=[  # transformers 4 counts first labels, too, for a compute_loss_func
            {**one, "labels": torch.cat([torch.tensor([-100]), one["labels"][1:]])}
            for one in data(model)
        ],
        zo_config=settings(eps=1e-7),
        callbacks=[log := Log()],
        **extra,
    )
    if way == "custom":
        model.zo_custom_train_loss_fn = lambda m, ids, logits, labels, **rest: (
            wrong(logits, labels) / count(labels)
        )
    made.register_zo2_training_step_pre_hook(lambda model, inputs: seen.append(dict(inputs)))
    made.train()
    with torch.no_grad():
        errors = [
            wrong(plain(one["input_ids"], one["attention_mask"]).logits, one["labels"])
            for one in seen
        ]
    labels = [count(one["labels"]) for one in seen]
    assert labels[0] != labels[1]
    assert log.values("loss") == pytest.approx([sum(errors) / sum(labels)], abs=6e-5)
    assert model.opt.steps == 1


def test_hooks_around_steps_see_and_change(tmp_path):
    model, calls = tiny("opt"), []
    made = trainer(model, tmp_path, {"gradient_accumulation_steps": 2, "max_steps": 2})

    def before(model, inputs):
        calls.append(("before", model.opt.steps))
        return model, {**inputs, "labels": inputs["input_ids"]}

    def after(model, inputs, loss):
        calls.append(("after", model.opt.steps))
        assert torch.equal(inputs["labels"], inputs["input_ids"])
        model.opt.projected_grad = 0  # takes the step back
        return model, inputs, loss * 0 + 5

    start = {name: value.clone() for name, value in model.state_dict().items()}
    made.register_zo2_training_step_pre_hook(before)
    made.register_zo2_training_step_post_hook(after)
    made.train()
    assert calls == [
        ("before", 0),
        ("before", 0),
        ("after", 1),
        ("before", 1),
        ("before", 1),
        ("after", 2),
    ]
    assert made.log_seen.values("loss") == [5.0, 5.0]
    assert all(torch.equal(start[name], value) for name, value in model.state_dict().items())


def test_callbacks_may_call_and_generate_with_the_model(tmp_path):
    class Calls(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            ids = torch.tensor([[5, 6, 7]])
            assert model(input_ids=ids).logits.shape[:2] == (1, 3)
            model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)

    model = tiny("llama")
    twin = copy.deepcopy(model)
    trainer(model, tmp_path, callbacks=[Calls()]).train()
    assert model.opt.steps == 4
    trainer(twin, tmp_path).train()
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_on_closures_is_a_step(parts):
    model = zo2.prepare(tiny("llama"), settings())
    twin = zo2.prepare(tiny("llama"), settings())
    batches = [batch(tiny("llama"), seed=seed) for seed in range(parts)]
    firsts = []

    def closure(one, first):
        firsts.append(first)
        return model(**one).loss

    for training in (True, False):  # the mode does not matter
        model.zo_training = training
        closures = [partial(closure, one) for one in batches]
        assert model.zo_step_on(closures, batches) == twin.zo_step(batches)
        assert model.zo_training is training
    assert firsts == [False, *2 * (parts * [True] + parts * [False])]
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_torchs_training_mode_turns_no_dropout_on():
    model = zo2.prepare(tiny("opt", dropout=0.5), settings())
    one = batch(model)
    model.zo_eval()
    logits = model(**one).logits
    assert model.train() is model
    assert model.training
    assert torch.equal(model(**one).logits, logits)
    assert not model.eval().training
    zo2.release(model)
    assert not torch.equal(model.train()(**one).logits, logits)


# -- learning rate ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "warmup", "more"),
    [
        ("linear", 0, {}),
        ("cosine", 2, {}),
        ("polynomial", 1, {"power": 2.0}),
        ("cosine_with_min_lr", 1, {"min_lr": 0.1}),
    ],
)
def test_the_schedule_sets_the_learning_rate_of_every_update(kind, warmup, more, tmp_path):
    model, rates = zo2.prepare(tiny("opt"), settings(lr=1e-3)), []
    options = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": more, "warmup_steps": warmup}
    made = trainer(model, tmp_path, {**options, "learning_rate": 0.4, "max_steps": 5})
    push = model._zo.engine.push

    def note(update):
        rates.append(-sum(c for _, c in update.terms) / (model.opt.projected_grad or 1))
        push(update)

    model._zo.engine.push = note
    made.train()
    other = torch.optim.SGD([torch.ones(1)], lr=0.4)
    schedule = transformers.get_scheduler(kind, other, warmup, 5, more)
    expected = []
    for _ in range(5):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        schedule.step()
    assert rates == pytest.approx(expected)
    assert not made.log_seen.values("grad_norm")
    assert len(made.log_seen.values("learning_rate")) == 5


def test_every_run_starts_with_its_own_learning_rate(tmp_path):
    model, rates = zo2.prepare(tiny("opt"), settings(lr=1e-3)), []
    linear = {"lr_scheduler_type": "linear", "max_steps": 2}
    for options in ({}, {"learning_rate": 0.2}, {"learning_rate": 0.4}):
        made = trainer(model, tmp_path, {**linear, **options})
        made.register_zo2_training_step_pre_hook(lambda model, inputs: rates.append(model.opt.lr))
        made.train()
    made.train()  # once more, from the start of the schedule
    assert rates == pytest.approx([1e-3, 5e-4, 0.2, 0.1, 0.4, 0.2, 0.4, 0.2])


def test_a_search_may_change_the_learning_rate_before_a_run(tmp_path):
    made = trainer(
        tiny("opt"), tmp_path, {"learning_rate": 0.1, "max_steps": 1}, zo_config=settings(lr=1e-3)
    )
    made.args.learning_rate = 0.3  # what hyperparameter_search does
    made.train()
    assert made.log_seen.values("learning_rate") == [0.3]


def test_a_learning_rate_that_nobody_set_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"learning rate is ZOConfig's default, lr=0.001"):
        ZOTrainer(tiny("opt"), arguments(tmp_path), zo_config=zo2.ZOConfig(**CPU))


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [({}, {"lr": 1e-6}, 1e-6), ({"learning_rate": 1e-4}, {}, 1e-4), ({}, {}, 1e-3)],
)
def test_where_the_learning_rate_comes_from(given, own, expected, tmp_path):
    made = ZOTrainer(
        tiny("opt"), arguments(tmp_path, **given), zo_config=zo2.ZOConfig(**{**CPU, **own})
    )
    assert made.create_optimizer().lr == expected


# -- evaluation -------------------------------------------------------------------------------


def test_evaluation_and_prediction_are_plain_forwards_streamed(tmp_path):
    model = tiny("llama", "sequence")
    examples = data(model)
    with torch.no_grad():
        expected = [model(**{k: v[None] for k, v in one.items()}) for one in examples]
    zo2.prepare(model, settings(), placement=STREAMED)

    def accuracy(prediction):
        return {
            "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        }

    made = trainer(
        model, tmp_path, {"per_device_eval_batch_size": 3}, examples,
        eval_dataset=examples, compute_metrics=accuracy,
    )  # fmt: skip
    metrics, predicted = made.evaluate(), made.predict(examples)
    logits = np.concatenate([one.logits.numpy() for one in expected])
    assert np.allclose(predicted.predictions, logits, atol=1e-6)
    labels = np.array([int(one["labels"]) for one in examples])
    assert metrics["eval_accuracy"] == float((logits.argmax(-1) == labels).mean())
    mean = np.mean([one.loss.item() for one in expected])
    assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-5)
    assert model.opt.steps == 0


def test_early_stopping_and_the_best_model(tmp_path):
    model = tiny("llama")
    made = trainer(
        model,
        tmp_path,
        {
            "max_steps": 12,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "learning_rate": 3.0,  # makes it worse
        },
        zo_config=settings(lr=1e-3),
        eval_dataset=data(model),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    made.train()
    losses = made.log_seen.values("eval_loss")
    best = losses.index(min(losses))
    assert made.state.global_step == best + 3 < 12
    assert made.state.best_metric == min(losses)
    assert made.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


# -- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "config", "changes"),
    [
        ("llama", {}, {"dtype": torch.bfloat16}),
        ("opt", {"method": "fzoo", "directions": 3}, {}),
        ("mixtral", {}, {}),  # transformers 5 saves its tensors under other names
    ],
)
def test_a_resumed_run_is_bit_identical(family, config, changes, tmp_path):
    options = {
        "max_steps": 7,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 5,  # within the second epoch
        "save_total_limit": 1,
    }

    def run(folder, seed, resume=None, stop=None):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop |= state.global_step == stop

        model = tiny(family, seed=seed, **changes)
        made = trainer(
            model, folder, options, zo_config=settings(seed=seed, **config), callbacks=[Stop()]
        )
        made.train(resume_from_checkpoint=resume)
        return model, made.log_seen.values("loss")

    straight, losses = run(tmp_path / "straight", seed=1)
    run(tmp_path / "parts", seed=1, stop=5)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["checkpoint-5"]
    resumed, rest = run(tmp_path / "parts", seed=2, resume=True)  # another model, another seed
    assert rest == losses[5:]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.opt.steps == 7


def test_a_saved_model_is_an_ordinary_one(tmp_path):
    model = tiny("llama")
    made = trainer(model, tmp_path)
    made.train()
    made.save_model(tmp_path / "model")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_what_is_stored_of_the_steps_is_plain_numbers(tmp_path):
    made = trainer(tiny("llama"), tmp_path, {"save_strategy": "steps", "save_steps": 2})
    made.train()
    state = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert json.loads(json.dumps(state)) == {**state}
    assert state["zo"] == {"seed": 3, "steps": 4}


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path):
    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = trainer(tiny("llama"), tmp_path, options, callbacks=[Fill()])
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be saved .* removed"):
            made.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    model = tiny("llama", seed=5)
    trainer(model, tmp_path, options).train(resume_from_checkpoint=True)
    assert model.opt.steps == 4


SAVED = {"save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize("written", ["", '{"global_step": 4, "log_hist'])
def test_a_half_written_checkpoint_of_a_killed_run_is_passed_over(written, tmp_path):
    trainer(tiny("llama"), tmp_path, SAVED).train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(written)
    model = tiny("llama", seed=5)
    made = trainer(model, tmp_path, SAVED)
    with pytest.warns(UserWarning, match="checkpoint-4 was not saved to its end, so checkpoint-2"):
        made.train(resume_from_checkpoint=True)
    assert len(made.log_seen.values("loss")) == 2


def test_a_run_killed_while_it_replaces_an_older_checkpoint(tmp_path):
    class Killed(ZOTrainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            raise KeyboardInterrupt

    trainer(tiny("llama"), tmp_path, SAVED).train()
    made = Killed(
        tiny("llama", seed=5),
        arguments(tmp_path, **SAVED),
        train_dataset=data(tiny("llama")),
        zo_config=settings(),
    )
    with pytest.raises(KeyboardInterrupt):
        made.train()
    # checkpoint-2 now has the weights of one run and the state of another
    resumed = trainer(tiny("llama"), tmp_path, SAVED)
    with pytest.raises(CheckpointError, match="checkpoint-2 is not a checkpoint that was saved"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_whole_checkpoint_stays_if_something_fails_after_it(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("an older checkpoint cannot be removed")

    rotates = hasattr(transformers.trainer, "rotate_checkpoints")
    home = transformers.trainer if rotates else transformers.Trainer
    monkeypatch.setattr(home, "rotate_checkpoints" if rotates else "_rotate_checkpoints", fail)
    with pytest.raises(OSError, match="cannot be removed"):
        trainer(tiny("llama"), tmp_path, SAVED).train()
    monkeypatch.undo()
    model = tiny("llama", seed=5)
    trainer(model, tmp_path, SAVED).train(resume_from_checkpoint=True)
    assert model.opt.steps == 4


@pytest.mark.parametrize("asked", [True, "checkpoint-2"])
def test_nothing_to_go_on_from(asked, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    made = trainer(tiny("llama"), tmp_path)
    with pytest.raises(CheckpointError, match="saved to its end"):
        made.train(resume_from_checkpoint=asked if asked is True else str(tmp_path / asked))


def test_a_checkpoint_of_the_model_alone_is_refused(tmp_path):
    trainer(tiny("llama"), tmp_path, {**SAVED, "save_only_model": True}).train()
    made = trainer(tiny("llama"), tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 holds the model alone"):
        made.train(resume_from_checkpoint=True)


def test_resuming_where_the_trainer_miscounts_is_said(tmp_path):
    if Version(transformers.__version__) >= Version("4.57"):
        pytest.skip(f"transformers {transformers.__version__} counts the steps of an epoch")
    options = {"gradient_accumulation_steps": 4, "max_steps": 2, "save_steps": 1}
    rows = data(tiny("llama"), 11)
    trainer(tiny("llama"), tmp_path, {**SAVED, **options}, rows).train()
    made = trainer(tiny("llama"), tmp_path, {**SAVED, **options}, rows)
    with pytest.warns(UserWarning, match=r"last, shorter step of an epoch \(6 batches in steps of"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hidden_size": 16}, "the model's has"),
        ({"num_hidden_layers": 1}, "which the model lacks"),
        ({"num_hidden_layers": 3}, "it lacks the model's"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(other, message, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    trainer(tiny("llama"), tmp_path, options).train()
    model = tiny("llama", seed=5, **other)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = trainer(model, tmp_path, options)
    with pytest.raises(CheckpointError, match=f"checkpoint-4 is of another model: .*{message}"):
        made.train(resume_from_checkpoint=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_first_order_checkpoint_is_refused(tmp_path):
    model = tiny("llama")
    options = arguments(tmp_path, save_strategy="steps", save_steps=4)
    transformers.Trainer(model, options, train_dataset=data(model)).train()
    made = trainer(tiny("llama"), tmp_path)
    with pytest.raises(CheckpointError, match="not of a zeroth-order run"):
        made.train(resume_from_checkpoint=True)


# -- what a user may get wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"optim": "sgd"}, "the update is the method's own"),
        ({"adam_beta1": 0.5}, "the update is the method's own"),
        ({"max_grad_norm": 0.5}, "no gradients to clip"),
        ({"fp16": True}, "load the model in float16"),
        ({"bf16_full_eval": True}, "load the model in bfloat16"),
        ({"neftune_noise_alpha": 5}, "other noise in every pass"),
        ({"torch_compile": True}, "block.compile"),
        ({"fsdp": "full_shard"}, "the model's own forward"),
        ({"use_liger_kernel": True}, "load a model that has its kernels"),
        ({"past_index": 1}, "a differently perturbed one"),
    ],
)
def test_options_for_gradients_are_refused(option, message, tmp_path):
    try:
        args = arguments(tmp_path, **option)
    except (TypeError, ValueError) as error:  # not an option, or not one without a GPU
        pytest.skip(str(error))
    with pytest.raises(zo2.ConfigError, match=message):
        ZOTrainer(tiny("opt"), args, zo_config=settings())


def accelerator(mixed_precision="no", backend=DynamoBackend.NO):
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=backend))
    return SimpleNamespace(mixed_precision=mixed_precision, state=state)


@pytest.mark.parametrize(
    ("configured", "processes", "message"),
    [
        ({"mixed_precision": "fp16"}, 1, "load the model in float16"),
        ({"backend": DynamoBackend.INDUCTOR}, 1, "configured to compile"),
        ({}, 2, "2 processes were started"),
    ],
)
def test_what_accelerate_is_configured_for_counts_too(configured, processes, message):
    args = SimpleNamespace(world_size=processes, n_gpu=1)
    with pytest.raises(zo2.ConfigError, match=message):
        check_accelerator(accelerator(**configured), args)


def test_one_of_several_gpus_is_used():
    args = SimpleNamespace(world_size=1, n_gpu=4)
    with pytest.warns(UserWarning, match="One of 4 GPUs is used"):
        check_accelerator(accelerator(), args)
    assert args._n_gpu == 1


def test_options_that_only_save_memory_of_a_backward_pass_are_turned_off(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        args = arguments(tmp_path, gradient_checkpointing=True)
    with pytest.warns(UserWarning, match="Checkpointing .* turned off"):
        made = ZOTrainer(tiny("opt"), args, zo_config=settings())
    assert not made.args.gradient_checkpointing
    assert args.gradient_checkpointing


def test_ordinary_options_are_taken_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        args = arguments(tmp_path, max_grad_norm=0.0, optim=TrainingArguments("x").optim)
        ZOTrainer(tiny("opt"), args, zo_config=settings())


def test_how_the_model_is_prepared_must_be_said_once(tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(zo2.ConfigError, match="pass zo_config"):
        ZOTrainer(tiny("opt"), args)
    with pytest.raises(zo2.ConfigError, match="prepared already: leave out zo_config"):
        ZOTrainer(zo2.prepare(tiny("opt"), settings()), args, zo_config=settings())
    with pytest.raises(zo2.ConfigError, match=r"learning_rate=0.1 and ZOConfig has lr=0.01"):
        ZOTrainer(tiny("opt"), arguments(tmp_path, learning_rate=0.1), zo_config=settings())
    made = trainer(tiny("opt"), tmp_path, optimizers=(torch.optim.SGD([torch.ones(1)]), None))
    with pytest.raises(zo2.ConfigError, match=r"optimizers has a SGD"):
        made.train()


def test_an_optimizer_class_is_refused(tmp_path):
    try:
        with pytest.raises(zo2.ConfigError, match="the update is the method's own"):
            trainer(tiny("opt"), tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1}))
    except TypeError as error:
        pytest.skip(str(error))


# -- data -------------------------------------------------------------------------------------


def test_worker_processes_change_nothing(tmp_path):
    weights = []
    for workers in (0, 2):
        made = trainer(tiny("llama"), tmp_path, {"dataloader_num_workers": workers})
        made.train()
        weights.append(made.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_stream_of_data_that_ends_within_a_step(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data(tiny("llama"), 10))

    made = trainer(tiny("llama"), tmp_path, {"gradient_accumulation_steps": 3}, Stream())
    seen = []
    made.register_zo2_training_step_pre_hook(lambda model, inputs: seen.append(len(inputs)))
    made.train()
    assert made.model.opt.steps == 4
    assert len(made.log_seen.values("loss")) == 4


def test_seeds_decide_everything(tmp_path):
    runs = []
    for seed in (1, 1, 2):
        made = trainer(
            tiny("llama"),
            tmp_path,
            {"seed": seed, "data_seed": 5},
            zo_config=zo2.ZOConfig(working_device="cpu", lr=1e-2),
        )
        made.train()
        runs.append((made.model.opt.seed, made.log_seen.values("loss")))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_every_kind_of_evaluation(tmp_path):
    examples = data(tiny("llama"))
    made = trainer(
        tiny("llama"),
        tmp_path,
        {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 5},
        examples,
        eval_dataset={"all": examples, "few": examples[:3]},
        compute_metrics=lambda found: {"shape": list(found.predictions.shape)},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    before = made.evaluate()
    made.train()
    assert before["eval_all_shape"] == [12, 16]
    assert len(made.log_seen.values("eval_few_loss")) == 3
    assert made.predict(examples[:5]).predictions.shape == (5, 16)


@pytest.mark.parametrize("reporter", ["tensorboard", "wandb"])
def test_reporting_to(reporter, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    try:
        made = trainer(tiny("llama"), tmp_path, {"report_to": [reporter]})
    except RuntimeError as error:
        assert f"requires {reporter} to be installed" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    made.train()
    assert list(tmp_path.rglob("events.out*" if reporter == "tensorboard" else "*.wandb"))


def test_a_model_made_by_model_init(tmp_path):
    made = ZOTrainer(
        args=arguments(tmp_path),
        model_init=lambda: tiny("opt"),
        train_dataset=data(tiny("opt")),
        zo_config=settings(),
    )
    made.train()
    first = made.model
    made.train()
    assert made.model is not first
    assert made.model.opt.steps == first.opt.steps == 4


# -- packages ---------------------------------------------------------------------------------


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return done.stdout.strip()


def test_nothing_is_imported_before_it_is_used():
    code = "import sys, zo2, zo2.trainer; print({'torch', 'trl', 'peft'} & set(sys.modules))"
    assert run(code) == "set()"


def test_the_places_where_zo2_has_the_trainers():
    import zo2.trainer
    import zo2.trainer.hf_transformers

    assert zo2.trainer.ZOTrainer is ZOTrainer is zo2.trainer.hf_transformers.ZOTrainer
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = zo2.trainer.Nothing

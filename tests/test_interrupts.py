"""Signals that come while weights are updated, and threads that share a model."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

import zo2
from tests.test_engine import CPU
from tests.tiny import batch, tiny
from zo2.engine.interrupts import Interrupts
from zo2.engine.placement import Placement
from zo2.engine.weights import TorchArithmetic

SETTINGS = {**CPU, "lr": 1e-2, "weight_decay": 0.1}


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """A shell lets what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["apply", "perturb"])
@pytest.mark.parametrize("after", [0, 1, 5, 17])
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("reading", [True, False])
def test_ctrl_c_leaves_the_weights_of_the_step_before(where, after, copies, reading, monkeypatch):
    """The pending update is applied once, whether it comes in a step or while weights are read."""
    model, reference = (
        zo2.prepare(
            tiny("llama"), zo2.ZOConfig(**SETTINGS), placement=Placement(copies=copies)
        )
        for _ in range(2)
    )  # fmt: skip
    one = batch(model)
    for each in (model, reference):
        for _ in range(2):
            each(**one)
    calls, original = [0], getattr(TorchArithmetic, where)

    def interrupted(self, *args):
        original(self, *args)
        calls[0] += 1
        if calls[0] == after + 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TorchArithmetic, where, interrupted)
    came = False
    try:
        model.zo_settle() if reading else model(**one)
    except KeyboardInterrupt:
        came = True
    monkeypatch.undo()
    assert came == (calls[0] > after)
    assert came or reading  # where nothing is perturbed
    if not came and not reading:
        return
    wanted = reference.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, wanted[name]), name


def test_handlers_are_those_of_before_and_called_in_turn():
    seen = []
    before = {
        number: signal.signal(number, lambda n, frame: seen.append(n))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    mine = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    try:
        with interrupts, interrupts:
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
            with interrupts.held_up:
                with interrupts.held_up:
                    signal.raise_signal(signal.SIGTERM)
                    signal.raise_signal(signal.SIGINT)
                assert len(seen) == 1
            assert seen[1:] == [signal.SIGTERM, signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_handler_that_raises_is_not_lost_in_the_update():
    interrupts = Interrupts()
    done = []

    def update():
        with interrupts, interrupts.held_up:
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        update()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_steps_in_another_thread_set_no_handlers():
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**SETTINGS))
    one, found = batch(model), []
    thread = threading.Thread(target=lambda: found.append(model(**one).item()))
    thread.start()
    thread.join()
    reference = zo2.prepare(tiny("llama"), zo2.ZOConfig(**SETTINGS))
    assert found == [reference(**one).item()]


def test_other_models_run_in_other_threads_while_a_first_pass_is_recorded():
    other, errors, stop = tiny("llama", seed=3), [], threading.Event()
    one = batch(other)
    wanted = other(**one).loss.item()

    def run():
        while not stop.is_set():
            try:
                assert other(**one).loss.item() == wanted
            except Exception as error:
                errors.append(repr(error))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            zo2.prepare(tiny("llama"), zo2.ZOConfig(**SETTINGS))(**one)
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_a_model_that_is_at_work_in_another_thread_says_so():
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**SETTINGS))
    one, errors = batch(model), []

    def call():
        try:
            model(**one)
        except zo2.ZO2Error as error:
            errors.append(str(error))

    def loss(model, input_ids, logits, labels, **rest):
        if not errors:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        return logits.float().mean()

    model.zo_custom_train_loss_fn = loss
    model(**one)
    assert len(errors) == 1
    assert "in another thread" in errors[0]

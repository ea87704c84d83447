"""Budgets that change, batches that need more memory, graphs that come and go: whatever happens, in
whatever order, a model that is bounded takes the steps of one that is not, or says why not.

A CPU measures no device memory, so what passes need is made up: so many bytes for each token.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import zo2
from tests.test_blockgraphs import recorded_in
from tests.test_engine import (
    CPU,
    Mix,
    Toy,
    assert_same,
    least,
    made_up,
    reads_from_the_trunk,
    toy_batch,
)
from tests.virtual import VirtualPlacement
from zo2.engine.blockgraphs import BlockGraphs
from zo2.engine.partition import partition
from zo2.engine.placement import SLACK, Placement

PER_TOKEN = 100  # bytes
PLENTY = 10**6


class Block(nn.Module):
    """It can be divided: its parts are a third and two thirds of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Mix(), nn.Sequential(Mix(), Mix())

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture(scope="module")
def batch_now():
    """Of which size it is, which decides what a sweep is said to need."""
    now = {"tokens": 0}
    with pytest.MonkeyPatch.context() as monkeypatch:
        made_up(monkeypatch, lambda: PER_TOKEN * now["tokens"])
        yield now


BATCHES = st.sampled_from([2, 2, 5])
STEPS = st.tuples(st.just("steps"), BATCHES)
BUDGETS = st.tuples(st.sampled_from(["leaf", "block", "block"]), st.integers(-1, 3_500))
EVENTS = st.one_of(
    STEPS,
    STEPS,
    STEPS,
    st.tuples(st.just("evaluate"), BATCHES),
    st.tuples(st.just("budget"), BUDGETS),
    st.tuples(st.just("graphs"), st.sampled_from([True, True, False])),
    st.just(("read", None)),
)


# weights are divided while units lack different updates
@example(
    room=300, events=[("steps", 2), ("budget", ("leaf", 200)), ("steps", 2)], slots=2, window=1,
    dtype=torch.float32, held=False, early=False, every=3, unit=None,
)  # fmt: skip
@settings(deadline=None, max_examples=50)
@given(
    room=st.integers(0, 3_500),
    events=st.lists(EVENTS, min_size=6, max_size=20),
    slots=st.integers(1, 4),
    window=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    held=st.booleans(),
    early=st.booleans(),
    every=st.sampled_from([None, 3]),
    unit=st.sampled_from([None, None, "block", "leaf"]),
)
def test_a_bounded_model_takes_the_same_steps(
    batch_now, room, events, slots, window, dtype, held, early, every, unit
):
    torch.manual_seed(3)
    model = Toy([Block() for _ in range(4)], reads_from_the_trunk if held else None).to(dtype)
    reference = copy.deepcopy(model)
    fewest = {
        size: min(least(partition(model, size), 2, outside) for outside in (False, True))
        for size in ("block", "leaf")
    }
    config = {**CPU, "lr": 1e-2, "update_window": window}
    zo2.prepare(reference, zo2.ZOConfig(**config))
    placement = Placement(slots=slots, copies=True, budget=PLENTY, write_back_every=every)
    zo2.prepare(model, zo2.ZOConfig(**config, unit=unit), placement=placement)
    engine, capture = model._zo.engine, recorded_in([])
    start = [("steps", 2), ("budget", ("block", room)), ("graphs", True)][early:]
    for number, (what, value) in enumerate(start + events):
        if what == "budget":
            with contextlib.suppress(zo2.DeviceMemoryError):
                engine.rebudget(fewest[value[0]] + value[1])
        elif what == "graphs":
            if value:
                engine.replay_blocks(lambda: BlockGraphs(engine.device, capture))
            else:
                engine.replay_nothing()
        elif what == "read":
            assert_same(dict(reference.state_dict()), dict(model.state_dict()))
        else:
            one = toy_batch(seed=number, n=2, length=value)
            batch_now["tokens"] = one["input_ids"].numel()
            for _ in range(3 if what == "steps" else 1):
                try:
                    found = loss_of(model, one, what)
                except zo2.DeviceMemoryError:  # there is no room for such a batch
                    engine.rebudget(PLENTY)
                    found = loss_of(model, one, what)
                assert found == loss_of(reference, one, what)
        assert engine.need.total <= engine._placement.budget
    assert_same(dict(reference.state_dict()), dict(model.state_dict()))


def in_leaves(method="mezo-sgd"):
    """A model of small blocks that are divided, with plenty of memory; and one without a budget."""
    torch.manual_seed(3)
    model = Toy([Block() for _ in range(4)])
    reference = zo2.prepare(copy.deepcopy(model), zo2.ZOConfig(method, **CPU, lr=1e-2))
    placement = VirtualPlacement(slots=2, copies=True, budget=10**9)
    config = zo2.ZOConfig(method, **CPU, lr=1e-2, unit="leaf")
    return zo2.prepare(model, config, placement=placement), reference


def largest_part(engine):
    return max(unit.stored for unit in engine.units if unit.block is not None)


@pytest.mark.parametrize(("more", "begin"), [(0, False), (4, True)])
def test_graphs_begin_where_there_is_room_beside_them_for_what_they_replay(more, begin):
    """Without it passes would stop in each part of a block, and no graph would stand for it."""
    model, reference = in_leaves()
    engine, tapes = model._zo.engine, []
    part = largest_part(engine)
    block = sum(unit.stored for unit in engine.units if unit.block == 0)

    def step(number):
        one = toy_batch(seed=number)
        assert model(**one).item() == reference(**one).item()
        assert engine.need.perturbed >= 2 * block

    step(0)
    engine._usage.activations = engine._usage.outside = 4 * part  # as a GPU would have measured
    engine.rebudget(SLACK + (18 + more) * part)
    step(1)
    graphs = partial(BlockGraphs, engine.device, recorded_in(tapes))
    assert engine.replay_blocks(graphs) == begin
    for number in range(2, 6):
        step(number)
    assert bool(tapes) == begin
    assert engine._workspace.streamed


def test_graphs_are_not_given_up_for_a_guess(caplog):
    """Before any pass more activations are reckoned with than there will be."""
    model, _ = in_leaves()
    engine = model._zo.engine
    part = largest_part(engine)
    engine.replay_blocks(partial(BlockGraphs, engine.device, recorded_in([])))
    engine._usage.activations = engine._usage.outside = 4 * part
    for guessed in (True, False):
        engine._placement = replace(engine._placement, budget=SLACK + 18 * part)
        engine._usage.is_guessed = guessed
        engine.rebuild()
        assert ("no room for CUDA graphs" in caplog.text) != guessed


def test_graphs_do_not_begin_where_passes_stop_within_blocks_whatever_the_room():
    """Of a step of FZOO one pass is not perturbed, and finds weights where they are stored."""
    model, _ = in_leaves("fzoo")
    engine = model._zo.engine
    assert engine.has_replayable_blocks
    model(**toy_batch(seed=0))
    assert not engine.has_replayable_blocks


def loss_of(model, one, what):
    if what == "steps":
        return model.zo_step([one]).item()
    return model.zo_forward([one])[0][0].item()


@pytest.mark.parametrize("at", ["start", "third block", "second pass"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("short", [1, 900, 5_000])
def test_where_memory_runs_out_weights_make_room_until_a_step_fits(monkeypatch, short, first, at):
    """However many bytes too few were left; and if there are not so many, the model goes on."""
    monkeypatch.setattr("zo2.engine.engine.FIRST_MORE", 100)
    made_up(monkeypatch, lambda: 0)
    model = Toy([Block() for _ in range(4)]).to(torch.bfloat16)
    reference, one = copy.deepcopy(model), toy_batch()
    zo2.prepare(reference, zo2.ZOConfig(**CPU, lr=1e-2))
    placement = Placement(slots=2, copies=True, budget=PLENTY)
    zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-2, unit="block"), placement=placement)
    engine = model._zo.engine
    engine.rebudget(engine.need.total)
    if not first:
        for _ in range(2):
            assert loss_of(model, one, "steps") == loss_of(reference, one, "steps")
    assert not engine.streams
    room = engine.need.total - least(engine.units, 2, outside=True)
    needed, ran_out = engine._usage.activations + short, []
    places = {
        "start": model.layers[0],
        "third block": model.layers[2],
        "second pass": model.layers[1],
    }

    def run_out(module, args):
        ran_out.append(engine._usage.activations < needed)
        if ran_out[-1] and (at != "second pass" or len(ran_out) % 2 == 0):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate.")

    places[at].register_forward_pre_hook(run_out)
    if needed > room:
        with pytest.raises(zo2.DeviceMemoryError, match="with everything streamed"):
            model.zo_step([one])
        engine.rebudget(PLENTY)
    for _ in range(3):
        assert loss_of(model, one, "steps") == loss_of(reference, one, "steps")
    assert engine.streams == (needed <= room)
    assert needed <= engine.need.activations < 2 * needed + 200
    assert 0 < sum(ran_out) < 30
    assert_same(dict(reference.state_dict()), dict(model.state_dict()))

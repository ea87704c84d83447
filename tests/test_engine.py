"""The sweep: same bits whatever the placement, and the traps that lockstep could fall into."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zo2
from tests.oracle import direction, is_decayed, naive_mezo, perturbed_loss
from tests.tiny import batch, tiny
from tests.virtual import VirtualPlacement
from zo2.engine import store
from zo2.engine.deferral import MOST, Deferral
from zo2.engine.devicememory import Usage
from zo2.engine.lanes import HostLanes, Waits
from zo2.engine.partition import partition
from zo2.engine.placement import FEWEST, Placement, perturbed_sizes, spread
from zo2.engine.store import Store
from zo2.engine.sweep import Sweep
from zo2.engine.transfer import Slots

CPU = {"working_device": "cpu", "seed": 7}


def train(model, batches, steps, placement=None, split=1, method="mezo-sgd", **settings):
    """Weights and losses after ``steps`` steps of a copy of ``model``."""
    model = copy.deepcopy(model)
    config = zo2.ZOConfig(method, **{**CPU, "weight_decay": 0.0, "lr": 1e-3, **settings})
    zo2.prepare(model, config, placement=placement)
    losses = []
    for step in range(steps):
        whole = batches[step % len(batches)]
        parts = [
            {name: value.chunk(split)[i] for name, value in whole.items()} for i in range(split)
        ]
        losses.append(model.zo_step(parts).item())
    return losses, {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Toy(nn.Module):
    """Embedding, blocks, head; ``blocks`` says how to run them."""

    def __init__(self, layers, run=None, width=8, vocabulary=13, tied=False):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.run = run

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids)
        if self.run is not None:
            x = self.run(self, x)
        else:
            for layer in self.layers:
                x = layer(x)
        logits = self.head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss, logits


class Mix(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


def toy(count=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    return Toy([Mix() for _ in range(count)], **kwargs).eval()


def toy_batch(seed=0, n=4, length=6):
    ids = torch.randint(13, (n, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.roll(-1, 1)}


def toy_losses(model, one, seed, scales, family="gaussian"):
    """Losses of plain forwards of perturbed copies."""
    z = direction(model, seed, family)
    found = []
    for scale in scales:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(parameter.float() + z[name] * scale)
            found.append(other(**one)[0].item())
    return found


# -- the same bits whatever the placement ---------------------------------------------------


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_after_20_steps_do_not_depend_on_placement(family, dtype):
    model = tiny(family, dtype=dtype)
    batches = [batch(model, seed=s) for s in range(3)]
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    losses, weights = train(model, batches, 20, zo2=False, **settings)
    variants = {
        "all streamed": {},
        "one slot": {"placement": Placement(slots=1, copies=True)},
        "two slots": {"placement": Placement(slots=2, copies=True)},
        "five slots": {"placement": Placement(slots=5, copies=True)},
        "half": {"placement": Placement(blocks=frozenset([1]), slots=2, copies=True)},
        "leaf": {"unit": "leaf"},
        "leaf through slots": {"unit": "leaf", "placement": Placement(slots=2, copies=True)},
        "no overlap": {"overlap": False, "offloading_blocks": [0]},
        "home every second time": {"placement": Placement(copies=True, write_back_every=2)},
        "leaves, every third": {
            "unit": "leaf", "placement": Placement(slots=2, copies=True, write_back_every=3)
        },
    }  # fmt: skip
    for name, variant in variants.items():
        other_losses, other = train(model, batches, 20, **settings, **variant)
        assert losses == other_losses, name
        assert_same(weights, other)


@settings(deadline=None, max_examples=20)
@given(
    blocks=st.integers(1, 5),
    streamed=st.sets(st.integers(0, 4)),
    slots=st.integers(1, 6),
    unit=st.sampled_from(["block", "leaf"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    direction=st.sampled_from(["gaussian", "rademacher", "rank1"]),
    method=st.sampled_from(["mezo-sgd", "fzoo"]),
    tied=st.booleans(),
    copies=st.booleans(),
    every=st.integers(1, 4),
    outside=st.booleans(),
    window=st.integers(1, 3),
)
def test_any_partition_and_placement_give_the_same_bits(
    blocks, streamed, slots, unit, dtype, direction, method, tied, copies, every, outside, window
):
    model = toy(blocks, tied=tied).to(dtype)
    ids = [toy_batch(s) for s in range(2)]
    common = {"direction": direction, "method": method, "lr": 1e-2, "update_window": window}
    losses, weights = train(model, ids, 7, zo2=False, **common)
    blocks = frozenset(b for b in streamed if b < blocks)
    placement = Placement(blocks, outside, slots, copies, write_back_every=every)
    other_losses, other = train(model, ids, 7, placement, unit=unit, **common)
    assert losses == other_losses
    assert_same(weights, other)


def test_weights_equal_the_oracle_within_rounding():
    model = tiny("llama")
    batches = [batch(model, seed=s) for s in range(4)]
    settings = {"lr": 3e-3, "weight_decay": 0.1}
    _, expected = naive_mezo(model, batches, steps=20, seed=7, **settings)
    _, weights = train(model, batches, 20, **settings)
    for name, value in expected.items():
        difference = (weights[name].double() - value.double()).abs().max()
        assert difference < 20 * 2.0**-23 * (1 + value.abs().max()), name


@pytest.mark.parametrize("split", [1, 2, 4])
def test_micro_batches_give_the_loss_of_the_whole_batch(split):
    model = tiny("llama")
    batches = [batch(model, n=4, padded=True, seed=s) for s in range(2)]
    losses, weights = train(model, batches, 5)
    other_losses, other = train(model, batches, 5, split=split)
    assert other_losses == pytest.approx(losses, rel=1e-5)
    for name in weights:
        assert torch.allclose(weights[name], other[name], atol=2e-4), name


def test_one_example_at_a_time_is_the_same_bits_through_any_placement():
    model = tiny("opt")
    batches = [batch(model, n=3)]
    losses, weights = train(model, batches, 5, split=3, zo2=False)
    for variant in ({"unit": "leaf"}, {"placement": Placement(slots=2, copies=True)}):
        other_losses, other = train(model, batches, 5, split=3, **variant)
        assert losses == other_losses
        assert_same(weights, other)


@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1"])
@pytest.mark.parametrize("window", [2, 7, 50])
def test_a_window_of_pending_updates_saves_only_rounding(family, window):
    model = toy()
    batches = [toy_batch(s) for s in range(3)]
    settings = {"direction": family, "lr": 1e-2, "weight_decay": 0.1}
    losses, weights = train(model, batches, 25, **settings)
    other_losses, other = train(
        model,
        batches,
        25,
        update_window=window,
        placement=Placement(slots=2, copies=True),
        **settings,
    )
    assert other_losses == pytest.approx(losses, rel=1e-4)
    for name in weights:
        assert torch.allclose(weights[name], other[name], atol=1e-4), name


def test_base_stays_read_only_within_the_window():
    model = toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zo2.prepare(model, zo2.ZOConfig(update_window=10, lr=1e-2, **CPU))
    for _ in range(5):
        model(**toy_batch())
    engine = model._zo.engine
    assert len(engine.pending) == 5
    stored = {
        w.name: v
        for u in engine.units
        for w, v in zip(u.weights, engine.store.views[u], strict=True)
    }
    assert all(torch.equal(stored[name], before[name]) for name in stored)
    assert not torch.equal(model.state_dict()["head.weight"], before["head.weight"])
    assert not engine.pending


@pytest.mark.parametrize("window", [1, 3])
def test_updates_of_what_was_fetched_ahead_go_home_once_passes_are_at_a_block(window, monkeypatch):
    model = toy(5)
    placement = Placement(slots=2, copies=True)
    zo2.prepare(model, zo2.ZOConfig(**CPU, update_window=window), placement=placement)
    happened = []
    copied = HostLanes.write_back
    monkeypatch.setattr(
        HostLanes, "write_back", lambda *args: (happened.append("home"), copied(*args))[1]
    )
    for name, module in (("embedding", model.embed), ("block", model.layers[0])):
        module.register_forward_hook(lambda *args, name=name: happened.append(name))
    for number in range(7):
        happened.clear()
        model(**toy_batch())
        written = number > 0 and number % window == 0
        if number > 0:  # no recording
            ahead = ["home"] * (2 if written else 0)
            assert happened[: happened.index("block")] == ["embedding"] * 2 + ahead, number
        assert happened.count("home") == (5 if written else 0), number


@pytest.fixture
def home(monkeypatch):
    """Where each copy home has gone so far, in order."""
    places, copied = [], HostLanes.write_back
    monkeypatch.setattr(
        HostLanes, "write_back", lambda *args: (places.append(args[1].data_ptr()), copied(*args))[1]
    )
    return places


def test_blocks_go_home_in_turn_and_never_lack_more_than_they_may(home):
    model = toy(6)
    placement = Placement(slots=2, copies=True, write_back_every=3)
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=placement)
    engine = model._zo.engine
    model(**toy_batch())
    counts = []
    for _ in range(9):
        home.clear()
        model(**toy_batch())
        counts.append(len(home))
        assert max(map(engine.pending.lacks, engine.units)) <= 2
    assert counts == [2] * 9
    home.clear()
    model.state_dict()
    assert len(home) == 6
    assert not engine.pending


def test_sweeps_that_wait_for_copies_bring_less_home(home, monkeypatch):
    model = toy(6)
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=Placement(slots=2, copies=True))
    waits = 0.0
    monkeypatch.setattr(HostLanes, "waits", lambda lanes: Waits(waits, 0.0))

    def brought_home(steps):
        counts = []
        for _ in range(steps):
            home.clear()
            model(**toy_batch())
            counts.append(len(home))
        return counts

    assert brought_home(3)[1:] == [6, 6]
    waits = 0.5
    assert sum(brought_home(12)[-4:]) == 6
    waits = 0.0
    assert brought_home(20)[-2:] == [6, 6]


@pytest.mark.parametrize("every", [1, 3, None])
def test_nothing_is_stored_ahead_where_passes_do_not_wait(every, monkeypatch):
    model = toy(6)
    placement = Placement(slots=3, copies=True, write_back_every=every)
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=placement)
    ahead, waits, reached = [], 0.5, set()
    monkeypatch.setattr(HostLanes, "waits", lambda lanes: Waits(waits, 0.0))
    visit, written = Sweep._visit, Slots.written

    def visiting(sweep, unit, passes):
        reached.add(unit)
        visit(sweep, unit, passes)
        reached.discard(unit)

    def writing(slots, unit):
        if unit not in reached:
            ahead.append(unit)
        written(slots, unit)

    monkeypatch.setattr(Sweep, "_visit", visiting)
    monkeypatch.setattr(Slots, "written", writing)

    def stored_ahead(steps=4):
        for _ in range(2):
            model(**toy_batch())
        ahead.clear()
        for _ in range(steps):
            model(**toy_batch())
        return bool(ahead)

    assert stored_ahead()
    waits = 0.0
    assert not stored_ahead()
    waits = 0.5
    assert stored_ahead()


def test_frozen_later_keeps_what_was_not_yet_brought_home():
    results = []
    for every in (1, 4):
        model = toy(4)
        placement = Placement(slots=2, copies=True, write_back_every=every)
        zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-2), placement=placement)
        losses = [model(**toy_batch()).item() for _ in range(4)]
        for layer in model.layers[:2]:
            layer.requires_grad_(False)
        losses += [model(**toy_batch()).item() for _ in range(4)]
        results.append((losses, copy.deepcopy(model.state_dict())))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_weights_go_home_more_rarely_while_computation_waits():
    adapted = Deferral(None)
    assert all(adapted.is_due(number, 1) for number in range(5))
    for _ in range(10):
        adapted.learn(Waits(0.5, 0.0))
    dues = []
    for _ in range(2 * MOST):
        adapted.begin()
        dues.append([adapted.is_due(number, 1) for number in range(8)])
    assert all(sum(due) == 8 // MOST for due in dues)
    assert all(sum(ever) == 2 for ever in zip(*dues, strict=True))
    assert all(adapted.is_due(number, MOST) for number in range(5))
    for _ in range(3):  # a kernel was compiled, say
        adapted.learn(Waits(0.0, 0.0))
    assert sum(adapted.is_due(number, 1) for number in range(8)) == 8 // MOST
    for _ in range(20):
        adapted.learn(Waits(0.0, 0.0))
    assert all(adapted.is_due(number, 1) for number in range(5))


@given(waits=st.floats(0.07, 1.0))
def test_it_settles_how_often_weights_go_home_where_twice_as_often_is_too_often(waits):
    adapted = Deferral(None)
    last, each_time = 0.0, []
    for _ in range(600):
        adapted.begin()
        each_time.append(all(adapted.is_due(number, 1) for number in range(4)))
        adapted.learn(Waits(last, 0.0))  # known one sweep later
        last = waits if each_time[-1] else 0.0
    assert sum(each_time[:20]) > 2
    assert sum(each_time[-200:]) <= 12


def test_a_buffer_is_filled_again_as_soon_as_copies_are_made_of_it(monkeypatch):
    model = toy(5)
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=Placement(slots=2, copies=True))
    model(**toy_batch())
    engine = model._zo.engine
    blocks = {unit.block: engine.store.flats[unit].data_ptr() for unit in engine.units}
    happened = []
    copied = HostLanes.upload
    monkeypatch.setattr(
        HostLanes,
        "upload",
        lambda lanes, to, source, after: (
            happened.append(("up", source.data_ptr())),
            copied(lanes, to, source, after),
        )[1],
    )
    for index, layer in enumerate(model.layers):
        layer.register_forward_pre_hook(lambda *args, i=index: happened.append(("runs", i)))
    model(**toy_batch())
    for index in range(3):
        filled = happened.index(("up", blocks[index + 2]))
        runs = [k for k, what in enumerate(happened) if what == ("runs", index)]
        assert filled < runs[-1]  # one copy at a time is made on a CPU


@pytest.mark.parametrize("slots", [2, 6])
def test_with_two_buffers_units_go_home_one_by_one(slots, monkeypatch):
    model = tiny("opt")
    placement = Placement(slots=slots, copies=True)
    zo2.prepare(model, zo2.ZOConfig(**CPU, unit="leaf"), placement=placement)
    one = batch(model)
    home = []
    copied = HostLanes.write_back
    monkeypatch.setattr(
        HostLanes, "write_back", lambda *args: (home.append(args[1].numel()), copied(*args))[1]
    )
    model(**one)
    assert not home
    model(**one)
    streamed = model._zo.engine._workspace.streamed
    parcels = {model._zo.engine.store.resting[unit] for unit in streamed}
    assert len(parcels) < len(streamed)
    assert len(home) == len(streamed if slots == 2 else parcels)
    assert sum(home) == sum(parcel.nbytes for parcel in parcels)


def test_buffers_go_when_a_model_is_released_without_waiting_for_the_garbage_collector():
    model = toy(5)
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=Placement(slots=2, copies=True))
    model(**toy_batch())
    buffers = [weakref.ref(buffer) for buffer in model._zo.engine._buffers]
    assert len(buffers) == 3
    gc.disable()
    try:
        zo2.release(model)
        assert [buffer() for buffer in buffers] == [None] * 3
    finally:
        gc.enable()
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    assert model(**toy_batch()).isfinite()


@given(st.integers(0, 10**6), st.integers(1, 10**9), st.integers(10**5, 10**8))
def test_pieces_are_a_part_in_order(start, length, about):
    from zo2.engine.transfer import _pieces

    pieces = _pieces(slice(start, start + length), about)
    assert pieces[0].start == start
    assert pieces[-1].stop == start + length
    assert all(one.stop == other.start for one, other in itertools.pairwise(pieces))
    assert all(0 < piece.stop - piece.start < 1.6 * about for piece in pieces)


def test_fzoo_is_its_formula():
    model = toy()
    config = zo2.ZOConfig("fzoo", directions=3, lr=1e-2, weight_decay=0.0, eps=1e-2, **CPU)
    reference = copy.deepcopy(model)
    zo2.prepare(model, config)
    one = toy_batch()
    returned = model(**one).item()
    from zo2.directions.seeds import child_seed

    step = child_seed(7, 0)
    seeds = [child_seed(step, i) for i in range(3)]
    base = reference(**one)[0].item()
    losses = [toy_losses(reference, one, s, [1e-2], "rademacher")[0] for s in seeds]
    assert returned == base
    mean = sum(losses) / 3
    sigma = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 2)
    z = [direction(reference, s, "rademacher") for s in seeds]
    for name, parameter in reference.named_parameters():
        update = sum((loss - base) / sigma * zi[name] for loss, zi in zip(losses, z, strict=True))
        expected = parameter.detach() - 1e-2 / 3 * update
        assert torch.allclose(model.state_dict()[name], expected, atol=1e-6), name


# -- traps ----------------------------------------------------------------------------------


def autocast_around_layers(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in model.layers:
            x = layer(x)
    return x.float()


def no_grad_and_inference(model, x):
    with torch.inference_mode():
        x = model.layers[0](x)
        with torch.inference_mode(False):
            x = x.clone()
            with torch.no_grad():
                x = model.layers[1](x)
        x = model.layers[2](x)
    return x.clone()


def sdpa_and_device(model, x):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), torch.device("cpu"):
        for layer in model.layers:
            x = layer(x) + F.scaled_dot_product_attention(x, x, x)
    return x


@pytest.mark.parametrize("run", [autocast_around_layers, no_grad_and_inference, sdpa_and_device])
def test_contexts_opened_in_a_forward_do_not_leak(run):
    from zo2.engine.threadstate import capture

    model = toy(run=run)
    expected = toy_losses(model, toy_batch(), zo2_seed(0), [1e-3, -1e-3])
    before = capture()
    found = losses_of_a_step(model, toy_batch())
    assert found == expected
    assert capture() == before


def test_autocast_outside_the_step_holds_for_every_pass():
    model = toy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = toy_losses(model, toy_batch(), zo2_seed(0), [1e-3, -1e-3])
        found = losses_of_a_step(model, toy_batch())
        assert torch.is_autocast_enabled("cpu")
    assert found == expected
    assert expected[0] != expected[1]


def zo2_seed(step):
    from zo2.directions.seeds import child_seed

    return child_seed(CPU["seed"], step)


def losses_of_a_step(model, one, **settings):
    """The losses of all passes of one step of a copy of ``model``."""
    model = copy.deepcopy(model)
    zo2.prepare(model, zo2.ZOConfig(**{**CPU, "weight_decay": 0.0, **settings}))
    seen = []
    estimate = model._zo.method.estimate

    def spy(perturbations, losses, eps):
        seen.extend(losses)
        return estimate(perturbations, losses, eps)

    model._zo.method.estimate = spy
    model(**one)
    return seen


def run_shared_block_thrice(model, x):
    for _ in range(3):
        x = model.layers[0](x)
    return model.layers[1](x)


def run_backwards(model, x):
    for layer in reversed(model.layers):
        x = layer(x)
    return x


def skip_one(model, x):
    return model.layers[2](model.layers[0](x))


def depends_on_the_weights(model, x):
    """Which layer runs differs between the passes of a step."""
    return model.layers[int(x.sum().item() * 1e4) % 3](x)


@pytest.mark.parametrize(
    "run", [run_shared_block_thrice, run_backwards, skip_one, depends_on_the_weights]
)
@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [None, 1, 2])
def test_every_unit_is_updated_exactly_once_however_often_it_runs(run, unit, slots):
    model = toy(run=run)
    one = toy_batch()
    placement = slots and Placement(slots=slots, copies=True)
    expected = copy.deepcopy(model)
    seed = zo2_seed(0)
    plus, minus = toy_losses(model, one, seed, [1e-3, -1e-3])
    z = direction(model, seed)
    found = losses_of_a_step(model, one, unit=unit)
    assert found == [plus, minus]
    _, weights = train(model, [one], 1, placement, unit=unit, lr=1e-2)
    gradient = (plus - minus) / 2e-3
    for name, parameter in expected.named_parameters():
        exact = parameter.detach() + z[name] * (-1e-2 * gradient)
        assert torch.equal(weights[name], exact), name


def test_order_is_recorded_not_assumed():
    model = toy(run=run_backwards)
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    model(**toy_batch())
    names = [unit.name for unit in model._zo.engine._route.order]
    assert names == ["embed", "layers.2", "layers.1", "layers.0", "head"]


class ReadsChildWeight(nn.Module):
    """Uses its convolution's weight without calling the convolution, as Mamba does."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(8, 8, 1), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(
            F.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias).transpose(1, 2)
        )


class ReadsFromTheTrunk(Toy):
    """Uses the embedding as head, a slice of learned positions, and a loose parameter."""

    def __init__(self):
        super().__init__([ReadsChildWeight(), Mix()])
        self.positions = nn.Embedding(32, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids) * self.scale + self.positions.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(x, self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [None, 1, 3])
def test_weights_read_outside_their_module_are_found_and_perturbed(unit, slots):
    torch.manual_seed(1)
    model = ReadsFromTheTrunk().eval()
    one = toy_batch()
    found = losses_of_a_step(model, one, unit=unit)
    assert found == toy_losses(model, one, zo2_seed(0), [1e-3, -1e-3])
    placement = slots and Placement(slots=slots, copies=True)
    losses, weights = train(model, [one], 4, zo2=False)
    other_losses, other = train(model, [one], 4, placement, unit=unit)
    assert losses == other_losses
    assert_same(weights, other)


class Decoder(nn.Module):
    """One part of it is called from elsewhere first, without the rest, as in Perceiver."""

    def __init__(self):
        super().__init__()
        self.query, self.mix = nn.Linear(8, 8), Mix()

    def forward(self, x):
        return self.mix(x)


class AsksTheDecoderFirst(Toy):
    def __init__(self):
        super().__init__([Mix(), Mix()])
        self.decoder = Decoder()

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids)
        query = self.decoder.query(x)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.decoder(x + query))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_a_part_of_a_unit_may_be_called_without_the_rest(unit):
    torch.manual_seed(1)
    model = AsksTheDecoderFirst().eval()
    one = toy_batch()
    found = losses_of_a_step(model, one, unit=unit)
    assert found == toy_losses(model, one, zo2_seed(0), [1e-3, -1e-3])
    losses, weights = train(model, [one], 4, zo2=False)
    streamed = Placement(slots=2, copies=True, outside=True)
    other_losses, other = train(model, [one], 4, streamed, unit=unit)
    assert losses == other_losses
    assert_same(weights, other)


class SlicePositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 8))

    def forward(self, length):
        return {"found": (self.weight[:length],)}  # a view; the next pass overwrites its buffer


class UsesPositionsLate(Toy):
    def __init__(self):
        super().__init__([Mix(), Mix()])
        self.positions = SlicePositions()

    def forward(self, input_ids, labels=None):
        positions = self.positions(input_ids.shape[1])["found"][0]
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x + positions)
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


def test_a_unit_may_return_a_view_of_its_weight():
    torch.manual_seed(2)
    model = UsesPositionsLate().eval()
    found = losses_of_a_step(model, toy_batch())
    assert found == toy_losses(model, toy_batch(), zo2_seed(0), [1e-3, -1e-3])


def test_an_unexpected_read_after_recording_is_not_silent():
    """The first batch does not reach the branch that reads a weight outside its module."""
    model = toy()

    def run(self, x):
        if x.shape[1] > 6:
            x = x + self.head.weight[0]
        return self.layers[1](x)

    model.run = run
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    model(**toy_batch(length=6))
    with pytest.raises(zo2.NonFiniteLossError):
        model(**toy_batch(length=7))


def test_a_call_of_another_form_is_recorded_too():
    """Only single tokens take the branch that reads a weight outside its module."""
    model = toy()

    def run(self, x):
        if x.shape[1] == 1:
            x = x + self.head.weight[0]
        return self.layers[1](x)

    model.run = run
    long, single = toy_batch(length=6), toy_batch(length=1)
    expected = [toy_losses(model, one, 0, [0.0])[0] for one in (long, single)]
    zo2.prepare(model, zo2.ZOConfig(**CPU, unit="leaf"), placement=Placement(slots=1, copies=True))
    model.zo_eval()
    assert [model(**one)[0].item() for one in (long, single)] == expected
    model.zo_train()
    assert math.isfinite(model(**single).item())


def test_steps_in_succession_do_not_look_at_each_parameter(monkeypatch):
    """A GPU waits while they do."""
    looks = []
    look = Store.is_intact
    monkeypatch.setattr(Store, "is_intact", lambda store: looks.append(1) or look(store))
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=Placement(slots=2, copies=True))

    def found_looking(change):
        change()
        looks.clear()
        model(**toy_batch())
        return bool(looks)

    weight = model.head.weight
    assert found_looking(lambda: None)  # the first pass is recorded
    assert not found_looking(lambda: None)
    assert not found_looking(lambda: (weight.shape, weight.device, weight.requires_grad))
    for change in (
        lambda: weight.sum(),
        lambda: setattr(weight, "data", weight.data + 1),
        lambda: setattr(weight, "data", torch.ones(weight.shape)),
        lambda: weight.requires_grad_(False),
        lambda: setattr(weight, "requires_grad", True),
        model.bfloat16,
        model.float,
    ):
        assert found_looking(change)
        assert not found_looking(lambda: None)


def test_a_pass_that_asks_where_a_weight_is_finds_it_hidden_not_at_rest():
    """A pass may send tensors there; and weights that rest in host memory are no answer."""
    model, found = toy(), []
    model.run = lambda self, x: (
        found.append((self.head.weight.shape, type(self.head.weight)))
        or found.append((self.head.weight.device, type(self.head.weight)))
        or self.layers[1](x)
    )
    zo2.prepare(model, zo2.ZOConfig(**CPU), placement=Placement(slots=2, copies=True))
    for _ in range(3):
        found.clear()
        model(**toy_batch())
    (shape, before), (device, after), *_ = found
    assert (shape, device) == (model.head.weight.shape, torch.device("cpu"))
    assert before is not nn.Parameter
    assert after is nn.Parameter


class MovesPositions(Toy):
    def forward(self, input_ids, shift, labels=None):
        shift += 1  # in place: the next pass must not see it
        return super().forward((input_ids + shift) % 13, labels)


def test_a_forward_may_change_its_arguments():
    torch.manual_seed(3)
    model = MovesPositions([Mix()]).eval()
    one = toy_batch()
    expected = toy_losses(model, {**one, "shift": torch.tensor(2)}, zo2_seed(0), [1e-3])
    expected += toy_losses(model, {**one, "shift": torch.tensor(2)}, zo2_seed(0), [-1e-3])
    assert losses_of_a_step(model, {**one, "shift": torch.tensor(2)}) == expected


def test_tied_weights_are_one_parameter():
    model = toy(tied=True)
    one = toy_batch()
    assert losses_of_a_step(model, one) == toy_losses(model, one, zo2_seed(0), [1e-3, -1e-3])
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    model(**one)
    assert model.head.weight is model.embed.weight
    assert [unit.name for unit in model._zo.engine.units].count("embed") == 1
    assert "head" not in [unit.name for unit in model._zo.engine.units]
    state = model.state_dict()
    assert torch.equal(state["head.weight"], state["embed.weight"])


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_frozen_parameters_are_neither_perturbed_nor_updated(unit):
    model = toy()
    model.embed.weight.requires_grad_(False)
    model.layers[1].linear.weight.requires_grad_(False)
    one, frozen = toy_batch(), ("embed.weight", "layers.1.linear.weight")
    z = direction(model, zo2_seed(0))
    for name in frozen:
        z[name] = torch.zeros_like(z[name])
    expected = []
    for scale in (1e-3, -1e-3):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.add_(z[name] * scale)
        expected.append(other(**one)[0].item())
    assert losses_of_a_step(model, one, unit=unit) == expected
    _, weights = train(model, [one], 5, unit=unit, lr=1e-2, weight_decay=0.1)
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value) == (name in frozen), name


def test_one_layer_and_no_layer_models():
    for model in (toy(1), nn.Sequential(nn.Linear(3, 2))):
        if isinstance(model, Toy):
            losses, _ = train(model, [toy_batch()], 3)
            assert all(math.isfinite(loss) for loss in losses)
        else:
            zo2.prepare(model, zo2.ZOConfig(**CPU))
            model.zo_eval()
            assert model(torch.ones(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_decay_skips_biases_and_norms(dtype):
    model = toy().to(dtype)
    config = zo2.ZOConfig(lr=0.5, weight_decay=0.5, **CPU)
    reference = copy.deepcopy(model)
    zo2.prepare(model, config)
    model(**toy_batch())
    model.opt.projected_grad = 1e-30  # what remains of the update is the decay
    for name, parameter in reference.named_parameters():
        factor = 0.75 if is_decayed(reference, name) else 1.0
        error = (model.state_dict()[name].float() - parameter.float() * factor).abs().max()
        spacing = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-23
        assert error <= spacing * parameter.abs().max() + 1e-28, name
    assert any(not is_decayed(reference, n) for n, _ in reference.named_parameters())


def test_seed_zero_is_a_seed_like_any_other():
    model = toy()
    runs = {s: train(model, [toy_batch()], 3, seed=s)[1]["head.weight"] for s in (0, 1)}
    again = train(model, [toy_batch()], 3, seed=0)[1]["head.weight"]
    assert torch.equal(runs[0], again)
    assert not torch.equal(runs[0], runs[1])


def test_passes_leave_no_gradients():
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    loss = model(**toy_batch())
    assert not loss.requires_grad
    assert all(p.grad is None and p.grad_fn is None for p in model.parameters())


# -- errors leave the model usable ----------------------------------------------------------


def test_a_non_finite_loss_drops_the_step():
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(lr=1e-2, **CPU))
    twin = copy.deepcopy(model)
    zo2.prepare(twin, zo2.ZOConfig(lr=1e-2, **CPU))
    one = toy_batch()
    model(**one), twin(**one)
    with pytest.raises(zo2.NonFiniteLossError, match="every label of a batch is -100"):
        model(input_ids=one["input_ids"], labels=torch.full_like(one["labels"], -100))
    assert model(**one).item() == twin(**one).item()
    assert_same(model.state_dict(), twin.state_dict())


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("slots", [None, 1, 2])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_an_exception_inside_a_pass_leaves_the_weights_of_the_last_step(error, slots, at):
    calls = {"n": 0, "raise": None}

    def run(self, x):
        for layer in self.layers:
            x = layer(x)
            calls["n"] += 1
            if calls["n"] == calls["raise"]:
                raise error("stop here")
        return x

    one = toy_batch()
    placement = slots and Placement(slots=slots, copies=True)
    expected = train(toy(), [one], 4, lr=1e-2)[1]
    model = toy(run=run)
    zo2.prepare(model, zo2.ZOConfig(lr=1e-2, weight_decay=0.0, **CPU), placement=placement)
    model(**one), model(**one)
    calls["raise"] = calls["n"] + at
    with pytest.raises(error):
        model(**one)
    model(**one), model(**one)
    assert_same(model.state_dict(), expected)


def test_calling_the_model_inside_its_own_pass_is_refused():
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    model.zo_custom_train_loss_fn = lambda m, *args, **kwargs: m(**toy_batch())
    with pytest.raises(zo2.ZO2Error, match="within one of its own passes"):
        model(**toy_batch())


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_an_empty_batch_is_refused(shape):
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    empty = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(zo2.DataError, match="batch is empty"):
        model(input_ids=empty, labels=empty)
    with pytest.raises(zo2.DataError, match="at least one batch"):
        model.zo_step([])


def test_unknown_blocks_are_refused():
    with pytest.raises(zo2.ConfigError, match=r"block 9.*3 blocks"):
        zo2.prepare(toy(), zo2.ZOConfig(offloading_blocks=[1, 9], **CPU))


# -- resources ------------------------------------------------------------------------------


def test_a_prepared_model_can_be_collected():
    model = toy()
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    model(**toy_batch())
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=40), share=st.floats(0, 1.2))
def test_spread_fits_the_budget_and_is_even(sizes, share):
    budget = int(sum(sizes) * share)
    chosen = spread(sizes, budget)
    assert sum(sizes[i] for i in chosen) <= budget
    if budget >= sum(sizes):
        assert chosen == set(range(len(sizes)))
    if len(set(sizes)) == 1:
        assert len(chosen) == min(len(sizes), budget // sizes[0])
        gaps = [b - a for a, b in zip(sorted(chosen), sorted(chosen)[1:], strict=False)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_perturbed_loss_helper_moves_the_weights():
    """The oracle itself: a scale of zero is the plain loss, another is not."""
    model = tiny("opt")
    one, z = batch(model), direction(model, 1)
    assert perturbed_loss(model, one, 0.0, z) == model(**one).loss.item()
    assert perturbed_loss(model, one, 0.1, z) != model(**one).loss.item()


# -- memory budgets ---------------------------------------------------------------------------


def units_of(blocks=6, width=16, size="leaf"):
    return partition(Toy([Mix(width) for _ in range(blocks)], width=width), size)


def least(units, slots, outside, others=0, fewest=2):
    """Bytes needed if all is streamed, beside so many that are for something else."""
    fewest = Placement(slots=min(slots, fewest), outside=outside, copies=True)
    return fewest.plan(units, "cpu", others).need.total


def made_up(monkeypatch, need):
    """A CPU measures no device memory: let sweeps be said to need ``need()`` bytes."""

    @contextlib.contextmanager
    def measured(usage):
        yield
        usage.peak = need()

    monkeypatch.setattr(Usage, "measured", measured)


@settings(deadline=None, max_examples=60)
@given(
    budget=st.integers(0, 60_000),
    slots=st.integers(1, 5),
    size=st.sampled_from(["block", "leaf"]),
    activations=st.integers(0, 5_000),
    outside=st.booleans(),
)
def test_a_plan_fits_its_budget_and_uses_it(budget, slots, size, activations, outside):
    units = units_of(size=size)
    placement = Placement(slots=slots, budget=budget, outside=outside, copies=True)
    try:
        plan = placement.plan(units, "cpu", 1_000, activations)
    except zo2.DeviceMemoryError:
        assert least(units, slots, outside, 1_000 + activations) > budget
        assert least(units, slots, True, 1_000 + activations) > budget
        return
    if not outside and any(p.streamed and p.units[0].block is None for p in plan.parcels):
        # what else was left would do with two buffers
        assert least(units, slots, False, 1_000 + activations, FEWEST) > budget
    assert plan.need.total <= budget
    placed = [unit for parcel in plan.parcels for unit in parcel.units]
    assert placed == units
    weights = sum(parcel.nbytes for parcel in plan.parcels)
    stored = sum(parcel.nbytes for parcel in plan.parcels if not parcel.streamed)
    assert plan.need.resident == stored
    more = Placement(slots=slots, budget=budget + 2_000, outside=outside, copies=True)
    kept = sum(p.nbytes for p in more.plan(units, "cpu", 1_000, activations).parcels
               if not p.streamed)  # fmt: skip
    if plan.slots == min(slots, sum(p.streamed for p in plan.parcels)) and slots > 1:
        assert kept >= stored or kept == weights


@settings(deadline=None, max_examples=60)
@given(
    budget=st.integers(0, 60_000),
    slots=st.integers(1, 8),
    small=st.sampled_from([0, 1 << 28]),
)
def test_on_a_gpu_buffers_come_before_second_copies_and_no_stops_before_both(budget, slots, small):
    units = units_of()
    block = sum(unit.stored for unit in units if unit.block == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zo2.engine.placement.SLACK", 0)
        patch.setattr("zo2.engine.placement.SMALL_BLOCK", small)
        everything = Placement(slots=slots, copies=True, outside=True).plan(units, "cuda")
        buffer = everything.need.slots // everything.slots
        sizes = perturbed_sizes(units, "cuda")
        assert (sizes.whole >= 2 * block) == bool(small)
        assert sizes.once >= block or not small
        assert sizes.whole >= max(sizes.once, sizes.double) >= sizes.single
        parcels = [p.units[0].block for p in everything.parcels if p.streamed]
        parcels = max(map(parcels.count, {*parcels} - {None})) if small else 0

        def fits(room, slots):
            return everything.need.resident + room + slots * buffer <= budget

        try:
            placement = Placement(slots=slots, budget=budget, copies=True, outside=True)
            plan = placement.plan(units, "cuda")
        except zo2.DeviceMemoryError:
            assert not fits(sizes.single, min(slots, 2))
            return
    assert plan.need.total <= budget
    if plan.slots == min(slots, sum(p.streamed for p in plan.parcels)):
        return  # all that were wanted
    assert plan.slots >= min(slots, 2)
    assert not fits(plan.need.perturbed, plan.slots + 1)
    if plan.need.perturbed == sizes.whole:
        return
    assert not fits(sizes.whole, slots)
    enough = max(min(slots, 2), parcels + 1)  # buffers, to keep a block and fetch ahead
    if plan.need.perturbed != sizes.once:
        assert enough > slots or not fits(sizes.once, enough)


def test_a_guess_that_does_not_fit_leaves_as_much_as_there_is():
    model = tiny("opt", num_hidden_layers=4, hidden_size=256, word_embed_proj_dim=256, ffn_dim=1024)
    all_streamed = VirtualPlacement(slots=2, copies=True).plan(partition(model, "block"), "cuda")
    spare = 9 << 20
    where = VirtualPlacement(budget=all_streamed.need.total + spare, slots=2, copies=True)
    engine = zo2.prepare(model, zo2.ZOConfig(**CPU, unit="block"), placement=where)._zo.engine
    engine._usage.is_guessed, engine._usage.activations = True, Usage.FIRST_GUESS
    need = engine._plan(engine.units).need
    assert need.activations >= spare - (1 << 20)
    assert need.total <= where.budget
    with pytest.raises(zo2.DeviceMemoryError):
        where.plan(engine.units, "cuda", 0, need.activations + (1 << 20))
    engine._usage.is_guessed = False
    with pytest.raises(zo2.DeviceMemoryError, match=r"activations 0\.54"):
        engine._plan(engine.units)


def test_room_is_made_for_something_else_or_nothing_changes():
    model = tiny("opt", num_hidden_layers=6, hidden_size=64, word_embed_proj_dim=64, ffn_dim=256)
    one, twin = batch(model), copy.deepcopy(model)
    slots = {"slots": 2, "copies": True}
    all_streamed, resident = (
        VirtualPlacement(blocks=blocks, **slots).plan(partition(model, "block"), "cuda").need.total
        for blocks in (None, frozenset())
    )
    budget = (all_streamed + resident) // 2
    zo2.prepare(twin, zo2.ZOConfig(**CPU, zo2=False))
    zo2.prepare(
        model, zo2.ZOConfig(**CPU, unit="block"), placement=VirtualPlacement(budget=budget, **slots)
    )
    engine = model._zo.engine
    assert model(**one).item() == twin(**one).item()
    kept, more = engine.need.resident, budget - all_streamed
    assert kept > 0
    assert engine.need.total + more > budget
    assert not engine.make_room(2 * budget)
    assert engine.need.resident == kept
    assert engine.make_room(more)
    assert engine.need.context == more  # where memory that others use is counted
    assert engine.need.total <= budget
    assert [model(**one).item() for _ in range(3)] == [twin(**one).item() for _ in range(3)]
    assert_same(model.state_dict(), twin.state_dict())


def test_small_blocks_are_divided_where_there_is_no_room_for_two_and_a_copy():
    model = tiny("opt", hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=6)
    units = partition(model, "block")
    two = VirtualPlacement(slots=2, copies=True).plan(units, "cuda").need
    rooms = perturbed_sizes(units, "cuda")
    least = two.total - two.perturbed + rooms.once
    found = []
    largest = max(unit.stored for unit in units if unit.is_block)
    for budget in (least, least - largest):
        one = copy.deepcopy(model)
        engine = zo2.prepare(
            one, zo2.ZOConfig(**CPU), placement=VirtualPlacement(budget=budget, copies=True)
        )._zo.engine
        one(**batch(one))
        blocks = {unit.is_block for unit in engine.units if unit.block is not None}
        found.append((blocks, len(engine._workspace.stream.buffers)))
    (whole, few), (divided, many) = found
    assert (whole, few, divided) == ({True}, 2, {False})
    assert many > few


@pytest.mark.parametrize("window", [1, 4])
def test_a_budget_that_changes_moves_weights_and_no_bits(window):
    model = toy(6)
    one = toy_batch()
    losses, weights = train(model, [one], 9, zo2=False, update_window=window)
    other = copy.deepcopy(model)
    placement = Placement(slots=2, copies=True, budget=5_000)
    settings = {"lr": 1e-3, "weight_decay": 0.0, "update_window": window, "unit": "leaf"}
    zo2.prepare(other, zo2.ZOConfig(**CPU, **settings), placement=placement)
    engine = other._zo.engine
    seen, found = [], []
    for activations in (0, 1_800, 600, 3_200, 2_500, 0, 3_500, 3_200, 1_200):
        engine._usage.activations = activations
        with torch.no_grad():
            engine._place_anew()
        seen.append(len(engine._workspace.streamed))
        embeddings = any(unit.block is None for unit in engine._workspace.streamed)
        assert embeddings == (activations >= 3_200)  # they go last
        found.append(other(**one).item())
    assert len(set(seen)) > 4  # units did move, both ways
    assert found == losses
    assert_same(weights, {name: value.clone() for name, value in other.state_dict().items()})


def test_host_memory_that_is_refused_half_way_leaves_the_model_usable(monkeypatch):
    from zo2.engine.store import Store

    model = toy(6)
    one = toy_batch()
    losses, _ = train(model, [one], 3, zo2=False)
    placement = Placement(slots=2, copies=True, budget=20_000)
    config = zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0, unit="leaf")
    zo2.prepare(model, config, placement=placement)
    found = [model(**one).item()]
    engine, moved, move = model._zo.engine, [], Store.move

    def refused(store, unit, streamed):
        if len(moved) == 2:
            raise zo2.HostMemoryError("no more memory")
        moved.append(unit)
        move(store, unit, streamed)

    monkeypatch.setattr(Store, "move", refused)
    with pytest.raises(zo2.HostMemoryError, match="no more"), torch.no_grad():
        engine.rebudget(4_000)
    assert len(engine._workspace.streamed) == 2
    found += [model(**one).item() for _ in range(2)]
    assert found == losses


@pytest.fixture
def host_memory(monkeypatch):
    """Bytes of buffers that weights rest in: those that are alive, and most at once."""
    bytes_of = {"alive": 0, "most": 0}

    def memory(nbytes, device):
        array = np.empty(nbytes, np.uint8)  # a tensor does not tell when its memory goes
        weakref.finalize(array, grow, -nbytes)
        grow(nbytes)
        return torch.from_numpy(array)

    def grow(nbytes):
        bytes_of["alive"] += nbytes
        bytes_of["most"] = max(bytes_of["most"], bytes_of["alive"])

    monkeypatch.setattr(store, "_memory", memory)
    return bytes_of


def reads_from_the_trunk(model, x):
    """A weight that is read outside its module, which is found when a pass is recorded."""
    for layer in model.layers:
        x = layer(x)
    return x + model.embed.weight.mean(0)


def broad(run=None):
    torch.manual_seed(0)
    return Toy([Mix(32) for _ in range(8)], run, width=32).eval()


def weights_of_two_units(model):
    """Bytes of all weights, and of the two largest units: the one that moves, and alignment."""
    units = partition(model, "block")
    return sum(unit.stored for unit in units), 2 * max(unit.stored for unit in units)


@pytest.mark.parametrize("copies", [True, False])
def test_weights_that_turn_out_to_be_held_are_never_twice_in_memory(host_memory, copies):
    model = broad(reads_from_the_trunk)
    one = toy_batch()
    losses, _ = train(model, [one], 3, zo2=False)
    gc.collect()  # that copy of the model
    weights, two = weights_of_two_units(model)
    assert 2 * two < weights
    placement = Placement(slots=2, copies=copies)
    config = zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0)
    zo2.prepare(model, config, placement=placement)
    host_memory["most"] = 0
    assert [model(**one).item() for _ in range(3)] == losses
    assert any(unit.held for unit in model._zo.engine.units)
    assert weights <= host_memory["most"] <= weights + two


def has_blocks(model):
    """Whether blocks are units."""
    return any(unit.is_block for unit in model._zo.engine.units)


def test_weights_that_are_divided_further_are_never_twice_in_memory(host_memory):
    model = broad()
    one = toy_batch()
    losses, _ = train(model, [one], 4, zo2=False)
    gc.collect()
    weights, two = weights_of_two_units(model)
    placement = Placement(slots=2, copies=True, budget=10**6)
    config = zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0)
    zo2.prepare(model, config, placement=placement)
    found = [model(**one).item() for _ in range(2)]
    host_memory["most"] = 0
    model._zo.engine.rebudget(least(partition(model, "leaf"), 2, True))
    assert not has_blocks(model)
    assert weights <= host_memory["most"] <= weights + two
    assert found + [model(**one).item() for _ in range(2)] == losses


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_host_memory_that_is_refused_as_weights_are_taken_in_again(share):
    """Some of them are in their new buffers, the others in their old ones: none is lost."""
    model = broad(reads_from_the_trunk)
    one = toy_batch()
    losses, weights = train(model, [one], 3, zo2=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0))
    taken, adopt = [], Store._adopt

    def some(store, units, streamed):
        if len(taken) >= share * 10:
            raise zo2.HostMemoryError("no more memory")
        taken.append(units)
        adopt(store, units, streamed)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Store, "_adopt", some)
        for _ in range(2):
            with pytest.raises(zo2.HostMemoryError, match="no more"):
                model(**one)
            assert_same(before, {name: value.detach() for name, value in model.named_parameters()})
    assert [model(**one).item() for _ in range(3)] == losses
    assert_same(weights, dict(model.state_dict()))


def test_a_budget_that_is_refused_later_changes_nothing():
    model = toy(6)
    one = toy_batch()
    losses, weights = train(model, [one], 3, zo2=False)
    placement = Placement(slots=2, copies=True, budget=20_000)
    zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0), placement=placement)
    found = []
    for _ in range(3):
        found.append(model(**one).item())
        with pytest.raises(zo2.DeviceMemoryError):
            model._zo.engine.rebudget(100)
    assert found == losses
    assert_same(weights, {name: value.clone() for name, value in model.state_dict().items()})


@pytest.mark.parametrize("window", [1, 4])
def test_where_blocks_have_no_room_weights_are_divided_further_and_no_bit_changes(window):
    model = toy(6).to(torch.bfloat16)
    one = toy_batch()
    losses, weights = train(model, [one], 9, zo2=False, update_window=window)
    blocks, leaves = (least(partition(model, size), 2, True) for size in ("block", "leaf"))
    assert leaves < blocks
    settings = {"lr": 1e-3, "weight_decay": 0.0, "update_window": window}
    placement = Placement(slots=2, copies=True, budget=blocks)
    zo2.prepare(model, zo2.ZOConfig(**CPU, **settings), placement=placement)
    engine, sizes, found = model._zo.engine, [], []
    for step in range(9):
        if step == 6:
            with pytest.raises(zo2.DeviceMemoryError, match=r"Raise the budget, or use"):
                engine.rebudget(leaves - 1)
            sizes.append(len(engine.units))
            engine.rebudget(leaves)
        sizes.append(len(engine.units))
        found.append(model(**one).item())
    assert sizes[0] == sizes[6] < sizes[7] == sizes[-1] == len(partition(model, "leaf"))
    assert not has_blocks(model)
    assert found == losses
    assert_same(weights, {name: value.clone() for name, value in model.state_dict().items()})


def test_what_passes_turn_out_to_need_divides_weights_further(monkeypatch):
    """Before the first pass the need is guessed; a budget may have room for blocks only then."""
    model = toy(6).to(torch.bfloat16)
    one = toy_batch()
    losses, _ = train(model, [one], 3, zo2=False)
    leaves = least(partition(model, "leaf"), 2, True, 500)
    blocks = least(partition(model, "block"), 2, True)
    assert blocks <= leaves < blocks + 500
    made_up(monkeypatch, lambda: 500)
    placement = Placement(slots=2, copies=True, budget=leaves)
    config = zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0)
    zo2.prepare(model, config, placement=placement)
    assert has_blocks(model)
    assert [model(**one).item() for _ in range(3)] == losses
    assert not has_blocks(model)


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_a_budget_too_small_for_what_a_pass_turns_out_to_read_drops_the_step(unit):
    """The embedding is read by the trunk: it cannot be streamed, as had been planned."""
    torch.manual_seed(1)
    model = ReadsFromTheTrunk().eval()
    one = toy_batch()
    losses, weights = train(model, [one], 3, zo2=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budget = least(partition(model, unit), 2, True)
    config = zo2.ZOConfig(**CPU, lr=1e-3, weight_decay=0.0, unit=unit)
    zo2.prepare(model, config, placement=Placement(slots=2, copies=True, budget=budget))
    for _ in range(2):
        with pytest.raises(zo2.DeviceMemoryError, match="with everything streamed"):
            model(**one)
        assert_same(before, dict(model.state_dict()))
    model._zo.engine.rebudget(10**6)
    assert [model(**one).item() for _ in range(3)] == losses
    assert_same(weights, dict(model.state_dict()))


def test_a_budget_that_is_too_small_says_what_is_needed():
    with pytest.raises(zo2.DeviceMemoryError, match=r"buffers 0\.\d+, resident weights"):
        zo2.prepare(toy(), zo2.ZOConfig(**CPU, device_memory_budget=100))


@pytest.mark.parametrize("bad", ["", "much", "-3GB", "0GB", 0, -1, 1.5, True, "3 XB"])
def test_a_budget_that_is_no_size_is_refused(bad):
    with pytest.raises(zo2.ConfigError, match="number of bytes"):
        zo2.ZOConfig(device_memory_budget=bad).validate()


def test_sizes_are_read():
    from zo2.config.base import parse_bytes

    assert parse_bytes("18GB") == 18 * 10**9
    assert parse_bytes(" 1.5 gib ") == 3 << 29
    assert parse_bytes("500") == parse_bytes(500) == 500

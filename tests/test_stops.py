"""Where passes stop: which modules are units, and what is entered without another stop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zo2
from tests.oracle import naive_mezo
from tests.test_engine import CPU, Toy, assert_same, toy, toy_batch, train
from tests.tiny import batch, tiny
from tests.virtual import TakingTurns, VirtualPlacement
from zo2.engine.partition import partition
from zo2.engine.sweep import Sweep
from zo2.engine.transfer import Slots
from zo2.engine.weights import TorchArithmetic

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}
WIDTH = 8


def opt(words=97, layers=3):
    """OPT whose norms are tiny beside its layers."""
    sizes = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512}
    return tiny("opt", **sizes, num_hidden_layers=layers, vocab_size=words)


def names(model, block=0):
    """Of a block's units, with the block's own name left out."""
    return [u.name.removeprefix(u.root) for u in partition(model, "leaf") if u.block == block]


class Block(nn.Module):
    """A block that runs as ``run`` says."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.large = nn.Linear(WIDTH, 6 * WIDTH)
        self.back = nn.Linear(6 * WIDTH, WIDTH)
        self.run = run

    def forward(self, x):
        return x + self.back(torch.tanh(self.large(self.run(self, x))))


class Pair(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if bias:
            self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))

    def within(self, x):
        """Not by a call of the module."""
        return self.a(x) + F.linear(x, self.b.weight) + self.bias


def model_of(run, blocks=3, words=13, **parts):
    torch.manual_seed(0)
    made = [Block(run, **{name: make() for name, make in parts.items()}) for _ in range(blocks)]
    return Toy(made, width=WIDTH, vocabulary=words).eval()


class WithLoss(nn.Module):
    """A `Toy` whose output has a loss, as the oracle wants it."""

    def __init__(self, toy):
        super().__init__()
        self.toy = toy

    def forward(self, input_ids, labels):
        class Output:
            loss, logits = self.toy(input_ids, labels)

        return Output


def units_once_trained(toy, unit="leaf"):
    """Its units, after steps whose losses and weights are those of the oracle, to the last bit."""
    model = WithLoss(toy)
    batches = [toy_batch(seed) for seed in range(4)]
    losses, weights = naive_mezo(model, batches, seed=CPU["seed"], **SETTINGS)
    zo2.prepare(model, zo2.ZOConfig(**CPU, **SETTINGS, unit=unit))
    assert [model.zo_step([one]).item() for one in batches] == [plus for plus, _ in losses]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    return model._zo.engine.units


# -- which modules are units ------------------------------------------------------------------


def test_parts_of_a_block_stay_whole_up_to_the_size_of_its_largest_layer():
    assert names(opt()) == [
        ".self_attn", ".self_attn_layer_norm", ".fc1", ".fc2", ".final_layer_norm",
    ]  # fmt: skip
    wide = tiny("llama", hidden_size=64, intermediate_size=32)  # attention is larger than any layer
    assert ".self_attn.q_proj" in names(wide)
    assert ".self_attn" not in names(wide)


def test_what_is_never_called_is_divided():
    experts = model_of(
        lambda block, x: sum(expert(x) for expert in block.experts),
        experts=lambda: nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)),
    )
    assert names(experts)[:3] == [".experts.0", ".experts.1", ".large"]
    assert not any(unit.held for unit in units_once_trained(experts))


def test_a_part_whose_children_are_called_without_it_is_divided():
    model = model_of(lambda block, x: block.pair.a(block.pair.b(x)), pair=Pair)
    assert ".pair" in names(model)
    units = units_once_trained(model)
    found = {unit.name.removeprefix(unit.root) for unit in units if unit.block == 0}
    assert found == {".pair.a", ".pair.b", ".large", ".back"}
    assert not any(unit.held for unit in units)


@pytest.mark.parametrize("size", ["block", "leaf"])
def test_a_block_whose_children_are_called_without_it_is_divided(size):
    def run(toy, x):
        for layer in toy.layers:
            x = x + layer.b(layer.a(x))
        return x

    torch.manual_seed(0)
    units = units_once_trained(Toy([Pair(), Pair()], run, width=WIDTH).eval(), size)
    assert not any(unit.held for unit in units)
    assert [unit.name.rpartition(".")[2] for unit in units if unit.block == 1] == ["a", "b"]


def test_weights_that_a_block_reads_by_itself_make_it_whole_and_nothing_is_held():
    model = model_of(lambda block, x: block.pair.within(x), pair=lambda: Pair(bias=True))
    units = units_once_trained(model)
    assert not any(unit.held for unit in units)
    assert all(unit.is_block for unit in units if unit.block is not None)


def test_what_can_be_neither_whole_nor_divided_is_held():
    """A module that reads a weight below it, of a layer that is also called without it."""

    class Reading(Pair):
        def forward(self, x):
            return F.linear(x, self.a.weight) + self.b(x)

    model = model_of(lambda block, x: block.pair(x) + block.pair.a(x), pair=Reading)
    held = [unit.name.rpartition(".pair.")[2] for unit in units_once_trained(model) if unit.held]
    assert held == 3 * ["a.weight", "a.bias"]


# -- what is entered without another stop -----------------------------------------------------


@pytest.fixture
def stops(monkeypatch):
    """Names of the units that passes wait for."""
    waited_for, visit = [], Sweep._visit

    def noting(self, unit, *more):
        waited_for.append(unit.name)
        visit(self, unit, *more)

    monkeypatch.setattr(Sweep, "_visit", noting)
    return waited_for


def of_a_step(model, stops, **settings):
    """The stops of a step once the order is known."""
    zo2.prepare(model, zo2.ZOConfig(**CPU, unit="leaf"), **settings)
    one = batch(model)
    for _ in range(2):
        model.zo_step([one])
    stops.clear()
    model.zo_step([one])
    return stops


STREAMED = VirtualPlacement(slots=4, copies=True)


@pytest.fixture
def large(monkeypatch):
    """Blocks count as large ones."""
    monkeypatch.setattr("zo2.engine.placement.SMALL_BLOCK", 0)


@pytest.mark.parametrize("placement", [None, STREAMED], ids=["in place", "streamed"])
def test_norms_take_no_stop_of_their_own(placement, stops, large):
    names = of_a_step(opt(), stops, placement=placement)
    # but the first one, which follows what is of no block; the head is tied to the embedding
    assert [name.rpartition("decoder.")[2] for name in names if ".fc" not in name] == [
        "embed_tokens", "embed_positions", *(f"layers.{n}.self_attn" for n in range(3)),
        "embed_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(("words", "each"), [(97, 3), (4000, 1)])
def test_what_has_arrived_of_a_large_block_is_taken_along_where_its_copies_find_room(
    words, each, stops, large
):
    """With a large vocabulary there is, in the room for the embedding's copies."""
    names = of_a_step(opt(words), stops, placement=STREAMED)
    assert len([name for name in names if ".layers.1." in name]) == each


def test_nothing_of_a_large_block_is_taken_along_that_has_not_arrived(stops, large, monkeypatch):
    monkeypatch.setattr(Slots, "has_arrived", lambda *args: False)
    names = of_a_step(opt(4000), stops, placement=STREAMED)
    assert len([name for name in names if ".layers.1." in name]) == 3


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_passes_go_through_a_small_block_at_once_whatever_has_arrived(slots, stops, monkeypatch):
    monkeypatch.setattr(Slots, "has_arrived", lambda *args: False)
    names = of_a_step(opt(), stops, placement=VirtualPlacement(slots=slots, copies=True))
    assert [name.rpartition("decoder.")[2] for name in names] == [
        "embed_tokens", "embed_positions",
        *(f"layers.{n}.self_attn_layer_norm" for n in range(3)), "embed_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(("slots", "stops_within"), [(2, 2), (3, 0), (4, 0)])
def test_passes_take_turns_at_a_small_block_that_there_is_room_for_one_copy_of(
    slots, stops_within, stops, transformed, monkeypatch
):
    """As long as buffers hold all of its three parcels meanwhile."""
    monkeypatch.setattr(Slots, "has_arrived", lambda *args: False)
    names = of_a_step(opt(), stops, placement=TakingTurns(slots=slots, copies=True))
    assert len([name for name in names if ".layers.1." in name]) == 1 + stops_within
    copies = [names for names in transformed if "layers.1.fc1.weight" in names[0]]
    assert len(copies) == 3 * (1 if stops_within else 2)  # in each of three steps


@pytest.mark.parametrize("where", ["first pass", "second pass"])
def test_an_error_while_passes_take_turns_leaves_all_buffers_to_later_steps(where):
    class Fault(Exception):
        pass

    model, results = opt(), []
    for placement in (None, TakingTurns(slots=4, copies=True)):
        one = copy.deepcopy(model)
        zo2.prepare(one, zo2.ZOConfig(**CPU, unit="leaf"), placement=placement)
        calls = iter([False] * 6 + [where == "first pass", True])  # of the fourth step

        def fail(module, args, calls=calls):
            if next(calls):
                raise Fault

        losses = [one(**batch(one)).item() for _ in range(2)]
        handle = one.model.decoder.layers[1].fc2.register_forward_pre_hook(fail)
        losses += [one(**batch(one)).item() for _ in range(3)]
        with pytest.raises(Fault):
            one(**batch(one))
        handle.remove()
        if placement:
            assert not any(slot.acquired for slot in one._zo.engine._workspace.stream._slots)
        results.append((losses + [one(**batch(one)).item() for _ in range(3)], one.state_dict()))
    (expected, weights), (losses, found) = results
    assert losses == expected
    assert_same(weights, found)


def test_blocks_that_passes_go_through_at_once_have_no_hooks_within(stops):
    model = opt()
    layer = model.model.decoder.layers[1]
    inner = layer.self_attn, layer.fc1, layer.final_layer_norm

    def hooked(modules=inner):
        return [bool(one._forward_hooks or one._forward_pre_hooks) for one in modules]

    of_a_step(model, stops, placement=STREAMED)
    assert hooked() == 3 * [False]
    model.zo_forward([batch(model)])  # which stops within blocks
    assert hooked() == 3 * [True]
    model.zo_step([batch(model)])
    assert hooked() == 3 * [False]
    copied = copy.deepcopy(model)
    assert not any(hooked(copied.modules()))
    zo2.release(model)
    assert not any(hooked(model.modules()))


def test_calls_that_go_past_a_block_find_the_parts_of_it():
    """Those of single tokens, after steps whose passes have entered blocks by one call."""

    def run(toy, x):
        for layer in toy.layers:
            x = layer(x) if x.shape[1] > 1 else x + layer.linear(layer.norm(x))
        return x

    model = toy(3, run=run)
    inputs = [toy_batch(n, length=length) for n, length in enumerate((4, 4, 1, 4, 1, 4))]
    losses, weights = train(model, inputs, 12, zo2=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zo2.engine.placement.TINY", 0)
        others, found = train(model, inputs, 12, STREAMED, unit="leaf")
    assert others == losses
    assert_same(weights, found)


def test_frozen_weights_which_have_no_copies_are_waited_for(stops):
    model = opt()
    for layer in model.model.decoder.layers:
        layer.fc1.weight.requires_grad_(False)
    names = of_a_step(model, stops, placement=STREAMED)
    assert len([name for name in names if ".layers.1." in name]) > 1


@pytest.fixture
def transformed(monkeypatch):
    """Names of the weights that were updated or perturbed at once."""
    found, transform = [], TorchArithmetic.transform

    def noting(self, layout, *more):
        found.append([weight.name for weight in layout.weights])
        transform(self, layout, *more)

    monkeypatch.setattr(TorchArithmetic, "transform", noting)
    return found


def norms_of(transformed):
    return [names for names in transformed if all("norm" in name for name in names)]


@pytest.mark.parametrize("slots", [1, 4])
def test_all_norms_are_perturbed_at_once(slots, stops, transformed):
    model = opt()
    of_a_step(model, stops, placement=VirtualPlacement(slots=slots, copies=True))
    transformed.clear()
    model.zo_step([batch(model)])
    (norms,) = norms_of(transformed)
    assert len(norms) == 2 * (2 * 3 + 1)
    assert len(transformed) == 1 + 2 + 3 * 3 + 1  # embeddings, three layers of each block, the head


def test_norms_are_perturbed_one_by_one_where_passes_need_more_copies(transformed):
    model = opt()
    config = zo2.ZOConfig("fzoo", **CPU, unit="leaf", directions=3)
    zo2.prepare(model, config, placement=STREAMED)
    model.zo_step([batch(model)])
    transformed.clear()
    model.zo_step([batch(model)])
    assert len(norms_of(transformed)) == 7


def test_norms_of_a_sweep_that_failed_are_updated_once():
    model = opt()
    inputs = [batch(model, seed=seed) for seed in range(8)]

    def steps(placement=None, **more):
        other = copy.deepcopy(model)
        calls = iter(range(10**6))

        def fail(module, args):
            if next(calls) == 13:
                raise RuntimeError("once")

        config = zo2.ZOConfig(**CPU, lr=1e-2, **more)
        zo2.prepare(other, config, placement=placement)
        other.model.decoder.layers[1].fc2.register_forward_pre_hook(fail)
        losses = []
        for one in inputs:
            try:
                losses.append(other.zo_step([one]).item())
            except RuntimeError:
                losses.append(None)
        return losses, dict(other.state_dict())

    losses, weights = steps(zo2=False)
    found, others = steps(STREAMED, unit="leaf")
    assert found == losses
    assert found.count(None) == 1
    assert_same(weights, others)


def by_value(block, x):
    """Passes differ in what they enter, in which order, and how often."""
    if float(x.sum()) % 0.02 < 0.01:
        x = block.a(block.b(block.a(x)))
    if float(x.abs().max()) % 0.02 < 0.01:
        x = block.b(x)
    return block.norm(x)


@settings(deadline=None, max_examples=15)
@given(
    slots=st.integers(1, 6),
    chances=st.lists(st.booleans(), min_size=5, max_size=40),
    words=st.sampled_from([13, 400]),
    method=st.sampled_from(["mezo-sgd", "fzoo"]),
    every=st.sampled_from([1, 3]),
    small=st.sampled_from([0, 1 << 28]),
)
def test_what_is_taken_along_changes_no_bits(slots, chances, words, method, every, small):
    def linear():
        return nn.Linear(WIDTH, WIDTH)

    model = model_of(by_value, 4, words, a=linear, b=linear, norm=lambda: nn.LayerNorm(WIDTH))
    inputs = [toy_batch(seed) for seed in range(3)]
    how = {"method": method, "lr": 1e-3, "weight_decay": 0.1}
    losses, weights = train(model, inputs, 6, zo2=False, **how)
    arrived, asked = Slots.has_arrived, [0]

    def by_chance(self, unit):
        asked[0] += 1
        return arrived(self, unit) and chances[asked[0] % len(chances)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slots, "has_arrived", by_chance)
        patch.setattr("zo2.engine.placement.TINY", 1 / 4)
        patch.setattr("zo2.engine.placement.SMALL_BLOCK", small)
        where = VirtualPlacement(slots=slots, copies=True, write_back_every=every)
        others, found = train(model, inputs, 6, where, unit="leaf", **how)
    assert asked[0] or small
    assert others == losses
    assert_same(weights, found)

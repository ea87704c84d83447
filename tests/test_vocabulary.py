"""Embeddings and heads that are perturbed by rows: nothing changes but the memory that it takes."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import zo2
from tests.test_engine import CPU, assert_same
from tests.tiny import FAMILIES, batch, tiny
from tests.virtual import VirtualPlacement, copy_of
from zo2.directions import get_family
from zo2.engine import vocabulary
from zo2.engine.lanes import HostLanes
from zo2.engine.partition import partition
from zo2.engine.placement import Placement, perturbed_sizes, spared
from zo2.engine.serving import Serving
from zo2.engine.sweep import Sweep
from zo2.engine.vocabulary import servable
from zo2.engine.weights import TorchArithmetic

CAUSAL = sorted(FAMILIES)


class ByRows(TorchArithmetic):
    """Takes rows out of a perturbed copy of all; counts how often it was asked, for what."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = {"look_up": 0, "perturb_rows": 0}

    def look_up(self, matrix, index, ids):
        self.asked["look_up"] += 1
        return copy_of(self, matrix, index)[ids]

    def perturb_rows(self, matrix, rows, source, targets):
        self.asked["perturb_rows"] += 1
        assert source.equal(matrix.base[matrix.bytes_of(rows)])
        for index, out in targets:
            part = copy_of(self, matrix, index)[rows]
            assert out.numel() == part.numel() * part.element_size()
            out.copy_(part.reshape(-1).view(torch.uint8))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Heads of the tiny models are multiplied in several parts."""
    monkeypatch.setattr(vocabulary, "PART", 4096)
    monkeypatch.setattr(vocabulary, "GRAIN", 8)


@pytest.fixture
def train(monkeypatch):
    """Losses and weights of some steps, by copies or by rows; and what the arithmetic was asked."""

    def train(model, by_rows, inputs=None, steps=6, placement=None, step=None, **settings):
        made = []

        def arithmetic(config, device):
            kind = ByRows if by_rows else TorchArithmetic
            made.append(kind(get_family(config.direction), config.stochastic_rounding))
            return made[-1]

        monkeypatch.setattr("zo2.prepared.arithmetic_for", arithmetic)
        inputs = inputs or partial(batch, model)
        model = copy.deepcopy(model)
        zo2.prepare(model, zo2.ZOConfig(**{**CPU, "lr": 1e-2, **settings}), placement=placement)
        step = step or (lambda model, one: model(**one))
        losses = [float(step(model, inputs(seed=number % 3))) for number in range(steps)]
        asked = made[0].asked if by_rows else {}
        return losses, model.state_dict(), asked

    return train


def same(train, model, **settings):
    """What is asked by rows, once it is seen that results are those of copies, to the bit."""
    losses, weights, _ = train(model, False, **settings)
    others, found, asked = train(model, True, **settings)
    assert others == losses
    assert_same(weights, found)
    return asked


WHERE = {
    "resident": None,
    "streamed": VirtualPlacement(slots=2, copies=True),
    "all streamed": VirtualPlacement(slots=2, copies=True, outside=True),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("family", CAUSAL)
def test_rows_have_the_bits_of_copies(family, where, train):
    same(train, tiny(family), placement=WHERE[where], zo2=where != "resident")


@pytest.mark.parametrize("where", ["resident", "streamed"])
@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2"])
def test_embedding_and_head_are_asked_for_rows(family, unit, where, train):
    asked = same(
        train, tiny(family, vocab_size=700), placement=WHERE[where], zo2=where != "resident",
        unit=unit, steps=3,
    )  # fmt: skip
    assert asked["look_up"] >= 3 * 2
    assert asked["perturb_rows"] >= 3 * 2 * 2


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("direction", ["gaussian", "rank1"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_rests_in_host_memory_and_on_the_device_have_the_same_bits(
    family, direction, every, slots, train
):
    """Rows are updated as they are read; of what passes ask for together they are read once."""
    model = tiny(family, vocab_size=700)
    settings = {"direction": direction, "weight_decay": 0.1}
    losses, weights, asked = train(model, True, zo2=False, **settings)
    where = VirtualPlacement(slots=slots, copies=True, outside=True, write_back_every=every)
    others, found, in_host = train(model, True, placement=where, **settings)
    assert others == losses
    assert_same(weights, found)
    assert in_host["look_up"] == asked["look_up"] > 0
    assert in_host["perturb_rows"] == asked["perturb_rows"] / 2 > 0


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
@pytest.mark.parametrize("settings", [
    {"method": "fzoo", "directions": 3},
    {"method": "fzoo", "directions": 3, "write_back_every": 3},
    {"update_window": 3},
    {"weight_decay": 0.1},
    {"direction": "rank1"},
])  # fmt: skip
def test_other_settings_keep_their_bits(where, settings, train):
    same(train, tiny("opt", vocab_size=700), placement=WHERE[where], **settings)


@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_nothing_is_brought_twice(family, slots, train, monkeypatch):
    """A block comes to the device once in a sweep, and so does each part of the head."""
    model = tiny(family, vocab_size=700, num_hidden_layers=6)
    up, upload = [], HostLanes.upload

    def counted(lanes, to, source, after):
        up.append(source.numel())
        return upload(lanes, to, source, after)

    def step(model, one):
        up.clear()
        loss = model(**one)
        brought.append(sum(up))
        plans.append(model._zo.engine._placed)
        return loss

    brought, plans = [], []
    monkeypatch.setattr(HostLanes, "upload", counted)
    where = VirtualPlacement(slots=slots, copies=True, outside=True)
    train(model, True, placement=where, step=step)
    blocks = sum(parcel.nbytes for parcel in plans[-1].parcels if parcel.copied)
    head = 700 * 32 * 4
    assert brought[-3:] == [blocks + head] * 3


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_frozen_embeddings_and_heads_keep_their_bits(family, where, train, monkeypatch):
    """Only in host memory have passes to be given their rows, which are as they are stored."""
    served, kept = [], Serving._share

    def share(serving, unit, *others):
        served.append(unit.name)
        kept(serving, unit, *others)

    monkeypatch.setattr(Serving, "_share", share)
    model = tiny(family, vocab_size=700)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.requires_grad_(False)
    asked = same(train, model, placement=WHERE[where], zo2=where != "resident")
    names = {"llama": {"model.embed_tokens", "lm_head"}, "opt": {"model.decoder.embed_tokens"}}
    if where == "all streamed":
        assert names[family] <= set(served)
    else:
        assert not served
        assert asked["perturb_rows"] == 0


def test_frozen_weights_need_no_room_for_copies():
    model = tiny("llama", vocab_size=7000, tie_word_embeddings=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
    units = partition(model, "block")
    for known in (frozenset(), spared(units, model.lm_head)):
        place = partial(Placement(slots=2, copies=True).plan, units, "cuda", spared=known)
        assert place().need.perturbed == 2 * trained.numel() * trained.element_size()


def test_nothing_of_a_sweep_outlives_it(train, monkeypatch):
    """Neither sweeps nor what their passes hold, such as logits, wait for the garbage collector."""
    alive, begin = [], Sweep.run

    def run(sweep, *args):
        alive.append(weakref.ref(sweep))
        begin(sweep, *args)

    monkeypatch.setattr(Sweep, "run", run)
    gc.disable()
    try:
        train(tiny("opt", vocab_size=700), True, placement=WHERE["all streamed"])
        assert alive
        assert all(sweep() is None for sweep in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_a_custom_loss_reads_all_logits(where, train):
    def step(model, one):
        model.zo_custom_train_loss_fn = lambda model, input_ids, logits, labels, **_: (
            F.cross_entropy(logits.flatten(0, 1), input_ids.flatten())
        )
        return model(**one)

    asked = same(train, tiny("llama", vocab_size=700), placement=WHERE[where], step=step)
    assert asked["perturb_rows"] > 0


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_a_closure_reads_all_logits(where, train):
    def step(model, one):
        def closure(first):
            return model(**one).logits.float().square().mean()

        return model.zo_step_on([closure], [one])

    asked = same(train, tiny("llama", vocab_size=700), placement=WHERE[where], step=step)
    assert asked["perturb_rows"] > 0


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
@pytest.mark.parametrize("window", [1, 3])
def test_batches_of_a_new_form_in_the_midst(where, window, train):
    model = tiny("llama", vocab_size=700)

    def inputs(seed):
        one = batch(model, seed=seed)
        return one if seed < 2 else {**one, "attention_mask": torch.ones_like(one["input_ids"])}

    same(train, model, inputs=inputs, placement=WHERE[where], update_window=window)


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
@pytest.mark.parametrize(
    ("family", "head"),
    [("bart", "conditional"), ("llama", "sequence"), ("opt", "question")],
)
def test_other_heads_keep_their_bits(where, family, head, train):
    same(train, tiny(family, head), placement=WHERE[where])


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_autocast_keeps_its_bits(where, train):
    """Weights are of twice the size of what the head is given."""

    def step(model, one):
        with torch.autocast("cpu", torch.bfloat16):
            return model(**one)

    asked = same(train, tiny("llama", vocab_size=700), placement=WHERE[where], step=step)
    assert asked["perturb_rows"] > 0


class Shifted(nn.Embedding):
    """Reads its weight in two ways."""

    def forward(self, ids):
        return super().forward(ids) + self.weight.mean(0)


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_an_embedding_that_reads_all_of_itself(where, train):
    model = tiny("llama", vocab_size=700)
    model.model.embed_tokens.__class__ = Shifted
    asked = same(train, model, placement=WHERE[where])
    assert asked["look_up"] > 0


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_hooks_of_others_find_perturbed_weights(where, train):
    seen = {}

    def step(by_rows, model, one):
        if by_rows not in seen:
            seen[by_rows] = []
            model.model.embed_tokens.register_forward_hook(
                lambda module, args, output: seen[by_rows].append(module.weight.sum().item())
            )
        return model(**one)

    model = tiny("llama", vocab_size=700)
    for by_rows in (False, True):
        train(model, by_rows, placement=WHERE[where], step=partial(step, by_rows))
    assert seen[False] == seen[True] != []


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_modules_keep_the_forward_that_others_gave_them(where, train):
    calls = []

    def step(model, one):
        modules = [model.model.embed_tokens, model.lm_head]
        if "forward" not in modules[0].__dict__:
            for module in modules:
                own = module.forward
                module.forward = lambda x, own=own: (calls.append(own), own(x))[1]
        given = [module.forward for module in modules]
        loss = model(**one)
        assert [module.forward for module in modules] == given
        return loss

    asked = same(train, tiny("llama", vocab_size=700), placement=WHERE[where], step=step)
    assert asked == {"look_up": 0, "perturb_rows": 0}
    assert len(set(calls)) == 4


@pytest.mark.parametrize("where", ["streamed", "all streamed"])
def test_evaluations_between_steps(where, train):
    def step(model, one):
        loss = model(**one)
        model.zo_eval()
        found = model(**one).loss
        model.zo_train()
        return loss + found

    same(train, tiny("llama", vocab_size=700), placement=WHERE[where], step=step)


# -- memory ----------------------------------------------------------------------------------


def test_no_copy_of_a_large_vocabulary_is_planned_for():
    model = tiny("llama", vocab_size=7000, tie_word_embeddings=False)
    units = partition(model, "block")
    free = spared(units, model.lm_head)
    assert {unit.name for unit in free} == {"model.embed_tokens", "lm_head"}
    whole, parts = (perturbed_sizes(units, "cuda", some)[-1] for some in (frozenset(), free))
    block = max(unit.stored for unit in units if unit.block is not None)
    assert parts < 2 * block < whole
    place = partial(Placement(slots=2, copies=True, outside=True).plan, units, "cuda")
    by_rows, copied = place(spared=free), place()
    assert by_rows.by_rows == free <= by_rows.streamed == copied.streamed
    assert by_rows.need.perturbed < copied.need.perturbed
    assert by_rows.need.slots == 2 * max(p.nbytes for p in by_rows.parcels if p.copied)
    assert copied.need.slots == 2 * max(unit.stored for unit in free)


@pytest.mark.parametrize("where", ["resident", "streamed", "all streamed"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2"])
def test_no_copy_of_a_large_vocabulary_is_made(family, where, train, monkeypatch):
    """Neither when a pass is recorded, nor in steps, nor in evaluations between them."""

    def step(model, one):
        loss = float(model(**one))
        model.zo_eval()
        model(**one)
        model.zo_train()
        scratch = model._zo.engine._workspace.scratch.numel()
        largest = max(unit.stored for unit in model._zo.engine.units)
        assert scratch < largest
        return loss

    def unforeseen(sweep, base):
        raise AssertionError("a copy of all words")

    monkeypatch.setattr(Sweep, "_unforeseen", unforeseen)
    placement = WHERE[where] or VirtualPlacement(blocks=frozenset())
    model = tiny(family, vocab_size=7000)
    train(model, True, placement=placement, step=step)


def test_what_cannot_be_asked_for_rows_is_not_spared():
    model = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=96, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        )
    )  # fmt: skip
    units = partition(model, "block")
    names = {unit.name for unit in servable(units, model.lm_head)}
    assert names == {"model.decoder.embed_tokens", "model.decoder.embed_positions"}  # no projection
    assert {u.name for u in servable(units, None)} == {"model.decoder.embed_positions"}  # tied
    model.lm_head.bias = nn.Parameter(torch.zeros(96))
    names = {unit.name for unit in servable(partition(model, "block"), model.lm_head)}
    assert names == {"model.decoder.embed_positions"}
    model.model.decoder.embed_positions.weight.requires_grad_(False)
    frozen = {unit.name for unit in servable(partition(model, "block"), model.lm_head)}
    assert frozen == names  # its rows are as they are stored

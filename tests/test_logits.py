"""Stand-ins for logits: the loss of the plain model, chunk by chunk, and nothing silently wrong."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zo2
from tests.test_engine import CPU, Toy, losses_of_a_step, toy_batch, toy_losses, zo2_seed
from tests.tiny import FAMILIES, batch, tiny
from zo2.logits import Head, Logits, crossentropy
from zo2.logits.projection import Projection


def stand_in(rows=(2, 9), hidden=4, vocabulary=7, bias=False, seed=0):
    torch.manual_seed(seed)
    head = nn.Linear(hidden, vocabulary, bias=bias)
    states = torch.randn(*rows, hidden)
    with torch.no_grad():
        projection = Projection(head.weight.__getitem__, head.bias, head.out_features, 1000)
        return Logits(states, projection, []), head(states)


def set_chunk(patch, nbytes, rows=2048, columns=1):
    """Compute logits of so many bytes and rows at once, and of a multiple of so many columns."""
    patch.setattr(crossentropy, "CHUNK", nbytes)
    patch.setattr(crossentropy, "ROWS", rows)
    patch.setattr(crossentropy, "COLUMNS", columns)


@settings(deadline=None, max_examples=60)
@given(
    chunk=st.integers(1, 400),
    rows=st.integers(1, 20),
    columns=st.integers(1, 8),
    bias=st.booleans(),
    shifted=st.booleans(),
    cap=st.sampled_from([None, 2.0]),
    reduction=st.sampled_from(["mean", "sum"]),
    ignored=st.sets(st.integers(0, 15)),
)
def test_the_loss_is_that_of_all_logits(
    chunk, rows, columns, bias, shifted, cap, reduction, ignored
):
    lazy, real = stand_in(bias=bias)
    labels = torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(3))

    def loss(logits):
        logits = logits.float()
        target = labels
        if cap:
            logits = torch.tanh(logits / cap) * cap
        if shifted:
            logits, target = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
        flat = target.reshape(-1).clone()
        flat[[i for i in ignored if i < len(flat)]] = -100
        if (flat == -100).all():
            flat[0] = 1
        return F.cross_entropy(logits.view(-1, 7), flat, ignore_index=-100, reduction=reduction)

    with pytest.MonkeyPatch.context() as patch:
        set_chunk(patch, chunk, rows, columns)
        found = loss(lazy)
    assert found.item() == pytest.approx(loss(real).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "widened",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: (torch.tanh(x / 8) * 8).float(),
        lambda x: torch.tanh(x.float() / 8) * 8,
        lambda x: x,
    ],
)
def test_the_loss_of_half_precision_logits_is_that_of_all(dtype, widened, monkeypatch):
    set_chunk(monkeypatch, 100)
    generator = torch.Generator().manual_seed(0)
    # whole numbers, so that sums do not depend on their order
    states, weight = (
        torch.randint(-2, 3, shape, generator=generator).to(dtype) for shape in ((30, 4), (7, 4))
    )
    labels = torch.randint(7, (30,), generator=generator)
    labels[::7] = -100
    lazy = Logits(states, Projection(weight.__getitem__, None, len(weight), len(weight)), [])
    found = F.cross_entropy(widened(lazy), labels)
    expected = F.cross_entropy(widened(F.linear(states, weight)), labels)
    assert lazy._whole is None
    assert found.dtype == expected.dtype
    exact = expected.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 if exact else 1e-2)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.argmax(-1),
        lambda x: x[..., 2:4],
        lambda x: x[0, 1],
        lambda x: x[:, -1],
        lambda x: torch.log_softmax(x, dim=-1),
        lambda x: x + 1,
        lambda x: x.transpose(0, 1),
        lambda x: x.view(-1),
        lambda x: torch.cat([x, x]),
        lambda x: x * torch.arange(7),
        lambda x: x.to(torch.bfloat16),
        lambda x: F.cross_entropy(x.view(-1, 7), torch.full((18,), 2), label_smoothing=0.1),
        lambda x: F.cross_entropy(x.view(-1, 7), torch.full((18,), 2), weight=torch.arange(7.0)),
        lambda x: F.cross_entropy(x.view(-1, 7), torch.full((18,), 2), reduction="none"),
        lambda x: torch.tensor([x.shape[0], len(x), x.dim(), x.size(-1)]),
    ],
)  # fmt: skip
def test_whatever_is_read_is_what_the_head_gives(read):
    lazy, real = stand_in()
    found = read(lazy)
    found = found.whole() if isinstance(found, Logits) else found
    assert torch.equal(found, read(real))


def test_the_loss_by_a_module():
    lazy, real = stand_in()
    labels = torch.arange(18) % 7
    found, expected = (nn.CrossEntropyLoss()(x.view(-1, 7), labels) for x in (lazy, real))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert lazy._whole is None


def test_the_loss_of_no_rows_is_that_of_all_logits():
    lazy, _ = stand_in(rows=(3, 0))
    assert F.cross_entropy(lazy.view(-1, 7), torch.empty(0, dtype=torch.long)).isnan()


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(17, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(18).int()],
)
def test_labels_that_do_not_fit_are_what_they_are_to_torch(labels):
    lazy, real = stand_in()
    with pytest.raises((ValueError, RuntimeError)) as expected:
        F.cross_entropy(real.view(-1, 7), labels)
    with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
        F.cross_entropy(lazy.view(-1, 7), labels)


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_that_is_no_word_leaves_no_loss(label):
    lazy, _ = stand_in()
    labels = torch.arange(18) % 7
    labels[3] = label
    assert F.cross_entropy(lazy.view(-1, 7), labels).isnan()


def test_a_label_that_is_no_word_is_named(monkeypatch):
    set_chunk(monkeypatch, 1 << 10)
    model = tiny("llama")
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    one = batch(model)
    one["labels"] = one["labels"].clone()
    one["labels"][0, 3] = 10**6
    with pytest.raises(zo2.NonFiniteLossError, match="a label is 1000000"):
        model(**one)


def test_words_that_are_ruled_out():
    """Minus infinity in all of a part of the logits, as of words that are masked."""
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    logits[:, :4] = logits[2, 6:9] = -torch.inf
    labels = torch.tensor([5, 4, 11, 9, 10])
    known = crossentropy.unknown(5, torch.device("cpu"))
    for start in range(0, 12, 4):
        crossentropy.fold(logits[:, start : start + 4], labels, start, known)
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(known[0] - known[1], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_with_the_same_losses(family, monkeypatch):
    model = tiny(family)
    one = batch(model)
    whole = losses_of_a_step(model, one)
    set_chunk(monkeypatch, 1 << 10)
    computed = []
    monkeypatch.setattr(
        Logits, "cross_entropy", _spied(Logits.cross_entropy, computed), raising=True
    )
    assert losses_of_a_step(model, one) == pytest.approx(whole, rel=1e-5)
    assert computed  # else this shows nothing


def _spied(function, calls):
    def spy(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return spy


class HeadBeforeLastBlock(Toy):
    """Reads its logits only after another block has run."""

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, labels=None):
        x = self.layers[0](self.embed(input_ids))
        logits = self.head(x)
        y = self.layers[1](x)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss + y.mean(), logits


@pytest.mark.parametrize("slots", [None, 1])
def test_logits_that_are_read_after_another_unit_ran(slots, monkeypatch):
    from tests.test_engine import Mix
    from zo2.engine.placement import Placement

    torch.manual_seed(0)
    model = HeadBeforeLastBlock([Mix(), Mix()]).eval()
    expected = toy_losses(model, toy_batch(), zo2_seed(0), [1e-3, -1e-3])
    set_chunk(monkeypatch, 16)
    seen = []
    other = copy.deepcopy(model)
    zo2.prepare(
        other,
        zo2.ZOConfig(**CPU, weight_decay=0.0),
        placement=slots and Placement(slots=slots, copies=True),
    )
    estimate = other._zo.method.estimate
    other._zo.method.estimate = lambda p, losses, eps: (
        seen.extend(losses) or estimate(p, losses, eps)
    )
    other(**toy_batch())
    assert seen == pytest.approx(expected, rel=1e-6)


def test_a_hook_sees_real_logits(monkeypatch):
    set_chunk(monkeypatch, 16)
    model = tiny("llama")
    zo2.prepare(model, zo2.ZOConfig(**CPU))
    kinds = []

    def look(model, input_ids, logits, labels):
        kinds.append(type(logits))
        return input_ids, logits, labels

    model.register_zo_train_loss_fn_pre_hook(look)
    model(**batch(model))
    assert set(kinds) == {torch.Tensor}


def test_another_kind_of_head_is_left_alone():
    class Scaled(nn.Linear):
        pass

    head = Scaled(4, 7)
    with Head(head).returning_stand_ins():
        assert isinstance(head(torch.randn(2, 4)), torch.Tensor)

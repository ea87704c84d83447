"""What a step makes of the batches it is given: shares of micro-batches, forms, mistakes."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

import zo2
from tests.test_engine import CPU
from tests.tiny import batch, tiny

SETTINGS = {**CPU, "weight_decay": 0.0}


def prepared(model, **settings):
    return zo2.prepare(model, zo2.ZOConfig(**{**SETTINGS, **settings}))


def split(one, *sizes):
    parts = {name: value.split(sizes) for name, value in one.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(len(sizes))]


# -- shares of micro-batches ------------------------------------------------------------------


def uneven(model):
    """A batch whose examples have labels of very different number."""
    one = batch(model, n=4, padded=False)
    one["labels"][0, 1:] = -100
    one["labels"][1, 3:] = -100
    return one


def tokens(model):
    one = batch(tiny("llama"), n=4, padded=False)
    labels = torch.randint(model.config.num_labels, one["input_ids"].shape)
    labels[0, 1:] = -100
    labels[2, :5] = -100
    return {"input_ids": one["input_ids"], "labels": labels}


def classes(model):
    one = batch(model, n=4)
    one["labels"][0] = -100
    return one


def seq2seq():
    return tiny("bart", head="conditional")


CASES = {
    "causal": (lambda: tiny("llama"), uneven),
    "encoder and decoder": (seq2seq, uneven),
    "tokens": (lambda: tiny("llama", head="token"), tokens),
    "classes": (lambda: tiny("llama", head="sequence"), classes),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_splitting_a_batch_does_not_change_its_loss(case, sizes):
    make, fill = CASES[case]
    model = make()
    one = fill(model)
    with torch.no_grad():
        whole = copy.deepcopy(model)(**one).loss.item()
    found = prepared(model, eps=1e-6).zo_step(split(one, *sizes)).item()
    assert found == pytest.approx(whole, rel=1e-4)


def test_a_micro_batch_without_any_label_counts_nothing():
    model, reference = prepared(tiny("llama")), prepared(tiny("llama"))
    one = batch(model, n=4)
    one["labels"][2:] = -100
    parts = split(one, 2, 2)
    assert model.zo_step(parts).item() == reference.zo_step(parts[:1]).item()
    assert model.opt.projected_grad == reference.opt.projected_grad
    with pytest.raises(zo2.NonFiniteLossError, match="every label of a batch is -100"):
        model.zo_step(parts[1:])


# -- forms ------------------------------------------------------------------------------------


class TwoWays(nn.Module):
    """Reads a weight of ``sub`` without calling it, but only if ``extra`` is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(20, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.sub = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, input_ids, labels=None, extra=None):
        h = self.emb(input_ids)
        h = h + (self.sub(h) if extra is None else extra[..., None] * self.sub.weight[0])
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        logits = self.head(h)
        loss = nn.functional.cross_entropy(logits.view(-1, 20), labels.view(-1))
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [0, 0, 1]])
def test_batches_of_several_forms_are_gone_through_together(order):
    ids = torch.arange(10).view(2, 5)
    forms = [{"input_ids": ids, "labels": ids}]
    forms.append({**forms[0], "extra": torch.ones(2, 5)})
    batches = [forms[index] for index in order]
    plain = [TwoWays()(**one)["loss"].item() for one in batches]
    model = prepared(TwoWays())
    model.zo_eval()
    assert [one["loss"].item() for one in model.zo_forward(batches)] == plain
    stepping, closing = prepared(TwoWays()), prepared(TwoWays())
    weights = [1.0] * len(batches)
    loss = stepping.zo_step(batches, weights)
    assert loss.item() == pytest.approx(sum(plain) / len(plain), abs=0.1)
    closures = [lambda first, one=one: closing(**one)["loss"] for one in batches]
    assert closing.zo_step_on(closures, batches, weights) == loss


# -- hooks of others on units -------------------------------------------------------------------


def weight_norm(model):
    nn.utils.weight_norm(model.lm_head)
    nn.utils.weight_norm(model.model.layers[1].mlp.up_proj)


def pre_hook_on_a_block(model):
    block = model.model.layers[1]
    block.register_forward_pre_hook(
        lambda module, args: (args[0] * (1 + module.mlp.up_proj.weight.abs().mean()),)
    )


def pre_hook_on_a_layer(model):
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_pre_hook(lambda module, args: (args[0] * module.weight.abs().max(),))


HOOKS = [weight_norm, pre_hook_on_a_block, pre_hook_on_a_layer]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("add", HOOKS)
@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_hooks_find_the_weights_of_the_module_they_are_on(add, unit):
    model = tiny("llama")
    add(model)
    one = batch(model)
    with torch.no_grad():
        wanted = model(**one).loss.item()
    prepared(model, unit=unit, eps=1e-3)
    model.zo_eval()
    assert model(**one).loss.item() == wanted
    model.zo_train()
    assert model(**one).item() == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_hooks_that_come_later_do_too(unit):
    model = prepared(tiny("llama"), unit=unit)
    one, seen = batch(model), []
    model.zo_eval()
    model(**one)
    layer = model.model.layers[1].mlp.up_proj
    wanted = layer.weight.norm().item()
    for module in (layer, model.model.layers[1]):
        module.register_forward_hook(
            lambda module, args, output: seen.append(layer.weight.norm().item())
        )
    for _ in range(2):
        model(**one)
    inside = seen if unit == "block" else seen[::2]  # the layer's own; a block has no weights left
    assert inside == [wanted] * len(inside)


# -- inputs ---------------------------------------------------------------------------------------


def test_caches_with_a_history_are_taken_as_they_are():
    model = tiny("llama")
    ids = batch(model, padded=False)["input_ids"]
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = model(ids[:, :8], use_cache=True).past_key_values  # with gradients
    rest = {"input_ids": ids[:, 8:], "labels": ids[:, 8:]}
    with torch.no_grad():
        again = model(ids[:, :8], use_cache=True).past_key_values
        wanted = model(**rest, **{name: again}).loss.item()
    prepared(model, eps=1e-6)
    assert model(**rest, **{name: cache}).item() == pytest.approx(wanted, rel=1e-4)
    model.zo_eval()
    assert model(**rest, **{name: cache}).loss.item() == pytest.approx(wanted, rel=1e-3)


def test_arguments_by_their_places():
    model, one = prepared(tiny("llama")), batch(tiny("llama"))
    same = prepared(tiny("llama"))
    assert model(one["input_ids"], labels=one["labels"]) == same(
        input_ids=one["input_ids"], labels=one["labels"]
    )
    with pytest.raises(TypeError, match="given input_ids twice"):
        model(one["input_ids"], input_ids=one["input_ids"])
    with pytest.raises(TypeError, match=r"takes .* positional arguments, but 40 were given"):
        model(*[None] * 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.zo_step(x), r"zo_step takes a list of batches.*model.zo_step\(\[batch\]\)"),
        (lambda m, x: m.zo_forward(x), "zo_forward takes a list of batches"),
        (lambda m, x: m.zo_step([(x["input_ids"],)]), "zo_step takes a list of batches"),
        (lambda m, x: m.zo_step([]), "at least one batch"),
        (lambda m, x: m.zo_step_on([], []), "at least one batch"),
        (lambda m, x: m.zo_step_on([lambda first: 0.0], [x, x]), "2 batches .* but 1 closures"),
        (lambda m, x: m.zo_step_on([lambda first: None], [x]), "A closure returned None"),
        (lambda m, x: m(input_ids=x["input_ids"]), r"model.zo_eval\(\) first"),
    ],
)
def test_mistakes_are_said(call, message):
    model = prepared(tiny("llama"))
    with pytest.raises(zo2.DataError, match=message):
        call(model, batch(model))
    assert model.opt.steps == 0


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_with_settings_that_are_no_numbers_is_not_taken(name, value):
    model = prepared(tiny("llama"))
    before = copy.deepcopy(model.state_dict())
    model.opt.param_groups[0][name] = value
    with pytest.raises(zo2.ConfigError, match=f"The optimizer's {name} is (nan|inf)"):
        model(**batch(model))
    model.opt.param_groups[0]["eps"] = 0.0
    model.opt.param_groups[0]["lr"] = model.opt.param_groups[0]["weight_decay"] = 1e-3
    with pytest.raises(zo2.ConfigError, match="eps is 0, but has to be a finite number greater"):
        model(**batch(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_estimate_that_is_no_number_is_dropped(monkeypatch):
    from zo2.methods import Estimate
    from zo2.methods.mezo import MeZO

    model = prepared(tiny("llama"))
    wrong = [Estimate(1, float("nan"))]
    monkeypatch.setattr(MeZO, "estimate", lambda *args: wrong)
    with pytest.raises(zo2.NonFiniteLossError, match="estimate of the gradient is not finite"):
        model(**batch(model))
    assert model.opt.steps == 0
    assert not any(w.isnan().any() for w in model.parameters())

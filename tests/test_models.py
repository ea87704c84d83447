"""Models of transformers: every pass is a plain forward, every step is MeZO's, to the last bit."""

from __future__ import annotations

import copy
import gc
import inspect

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import zo2
from tests.oracle import direction, naive_mezo, perturbed_loss
from tests.tiny import batch, tiny
from tests.virtual import TakingTurns
from zo2.directions.seeds import child_seed
from zo2.engine.placement import Placement

SEED, EPS = 5, 1e-3
SLOTS = Placement(slots=2, copies=True)

FAMILIES = [
    *("opt", "qwen3", "llama", "mixtral", "gpt2"),
    *("bart", "bloom", "deepseek_v3", "falcon", "gemma2", "gpt_neox", "gpt_oss", "gptj", "mamba"),
    *("phi3", "qwen2_moe", "qwen3_moe", "recurrent_gemma", "zamba"),
]
VARIANTS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attn_implementation": "eager"}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("opt", {"word_embed_proj_dim": 16}),
    ("mixtral", {"output_router_logits": True}),  # a loss over what all the layers' routers said
    ("qwen3_moe", {"output_router_logits": True}),
]
CASES = [
    *((family, "causal", {}) for family in FAMILIES),
    *(
        (family, head, {})
        for head in ("sequence", "question")
        for family in ("opt", "qwen3", "llama", "mixtral", "gpt2", "bart", "falcon")
    ),
    *((family, "causal", overrides) for family, overrides in VARIANTS),
]


def _name(case):
    family, head, overrides = case
    return "-".join([family, head, *overrides])


@pytest.fixture(params=CASES, ids=_name)
def case(request):
    return request.param


def prepared(model, placement=None, **settings):
    """A copy of ``model`` that trains, and the list that its steps' losses will be added to."""
    model = copy.deepcopy(model)
    config = zo2.ZOConfig(working_device="cpu", seed=SEED, eps=EPS, **settings)
    model = zo2.prepare(model, config, placement=placement)
    losses, estimate = [], model._zo.method.estimate

    def note(perturbations, values, eps):
        losses.append(tuple(values))
        return estimate(perturbations, values, eps)

    model._zo.method.estimate = note
    return model, losses


@pytest.mark.parametrize("unit", ["block", "leaf"])
def test_steps_are_those_of_the_oracle(case, unit):
    """Losses and weights of three steps, where they rest, through slots, and pass after pass."""
    family, head, overrides = case
    model = tiny(family, head, **overrides)
    batches = [batch(model, n=3, seed=seed) for seed in range(3)]
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    losses, weights = naive_mezo(model, batches, eps=EPS, seed=SEED, **settings)
    assert all(plus != minus for plus, minus in losses)
    for placement in (None, SLOTS, TakingTurns(slots=8, copies=True)):
        trained, seen = prepared(model, placement, unit=unit, **settings)
        for one in batches:
            trained(**one)
        assert seen == losses
        trained = dict(trained.named_parameters())
        assert trained.keys() == weights.keys()
        for name, expected in weights.items():
            assert torch.equal(trained[name], expected), name


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family", ["gptj", "llama", "mamba", "mixtral", "recurrent_gemma", "zamba"]
)
def test_micro_batches_of_different_lengths_do_not_disturb_each_other(family, dtype, unit):
    """What a model keeps for one length of batch is not seen by a pass of another length."""
    model = tiny(family, dtype=dtype)
    batches = [batch(model, n, length, seed=n) for n, length in ((3, 16), (2, 11), (1, 24))]
    trained, _ = prepared(model, SLOTS, unit=unit, lr=0.0, weight_decay=0.0)
    for step, one in enumerate(batches):
        alone = [float(one is other) for other in batches]
        loss = trained.zo_step(batches, weights=alone)
        z = direction(model, child_seed(SEED, step))
        assert loss.item() == perturbed_loss(model, one, EPS, z)


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("family", ["llama", "mamba", "mixtral", "recurrent_gemma"])
def test_evaluation_gives_the_outputs_of_plain_forwards(family, unit):
    """Intermediate outputs too, which some releases collect by replacing modules' forwards."""
    model = tiny(family)
    batches = [
        {**batch(model, n, length, seed=n), "output_hidden_states": True}
        for n, length in ((3, 16), (2, 11), (3, 16))
    ]
    with torch.no_grad():
        expected = [copy.deepcopy(model)(**one) for one in batches]
    evaluated, _ = prepared(model, SLOTS, unit=unit)
    evaluated.zo_eval()
    for output, wanted in zip(evaluated.zo_forward(batches), expected, strict=True):
        assert torch.equal(output.loss, wanted.loss)
        assert torch.equal(output.logits, wanted.logits)
        assert len(output.hidden_states) == len(wanted.hidden_states) > 0
        for one, other in zip(output.hidden_states, wanted.hidden_states, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba", "mixtral"])
def test_generation_with_a_cache_is_that_of_the_plain_model(family, unit):
    model = tiny(family)
    arguments = {
        "input_ids": batch(model, n=2, length=8, padded=False)["input_ids"],
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    with torch.no_grad():
        expected = copy.deepcopy(model).generate(**arguments)
    evaluated, _ = prepared(model, SLOTS, unit=unit)
    evaluated.zo_eval()
    generated = evaluated.generate(**arguments)
    assert torch.equal(generated.sequences, expected.sequences)
    for one, other in zip(generated.scores, expected.scores, strict=True):
        assert torch.equal(one, other)


class Keeping(nn.Module):
    """Two blocks between which the model keeps, on itself, what depends on weights and batch."""

    def __init__(self, how):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.how = how
        self.state = None
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x):
        x = self.layers[0](x)
        if self.how == "attribute":
            self.state = x
            x = self.layers[1](x) + self.state
        elif self.how == "new attribute":
            self.fresh = x
            x = self.layers[1](x) + self.fresh
            del self.fresh
        elif self.how == "buffer":
            self.register_buffer("table", x, persistent=False)
            x = self.layers[1](x) + self.table
        elif self.how == "forward":
            collected, last = [x], self.layers[1]
            original = last.forward
            last.forward = lambda y: collected.append(y) or original(y)
            x = last(x) + sum(collected)
            last.forward = original
        elif self.how == "once":  # as a model does that saves work while its weights stay
            if self.state is None:
                self.state = x
            x = self.layers[1](x) + self.state
        return {"loss": x.square().mean()}


def _attributes(model):
    return [{k: v for k, v in m.__dict__.items() if k != "_zo"} for m in model.modules()]


@pytest.mark.parametrize("how", ["attribute", "new attribute", "buffer", "forward", "once"])
def test_what_a_pass_keeps_on_modules_is_its_own(how):
    torch.manual_seed(0)
    model = Keeping(how)
    batches = [{"x": torch.randn(n, 8)} for n in (2, 3, 2)]

    def loss(seed, one):
        other = copy.deepcopy(model)
        z = direction(other, seed)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter += z[name] * EPS
            return other(**one)["loss"].item()

    trained, _ = prepared(model, lr=0.0, weight_decay=0.0)
    before, buffers = _attributes(trained), [dict(m._buffers) for m in trained.modules()]
    for step, one in enumerate(batches):
        alone = [float(one is other) for other in batches]
        assert trained.zo_step(batches, alone).item() == loss(child_seed(SEED, step), one)
    assert _attributes(trained) == before
    assert [dict(m._buffers) for m in trained.modules()] == buffers
    assert nn.Module.__setattr__ is _SETATTR
    assert nn.Module.__delattr__ is _DELATTR


_SETATTR, _DELATTR = nn.Module.__setattr__, nn.Module.__delattr__


def test_classes_are_changed_once_and_left_as_they_were():
    """To change a class makes every later use of its attributes slower."""

    def own():
        kinds, names = (Keeping, nn.Linear, nn.Module), ("__setattr__", "__delattr__")
        found = [vars(kind).get(name) for kind in kinds for name in names]
        return [*found, vars(RemovableHandle)["__init__"]]

    gc.collect()  # of other tests' models
    before, one = own(), {"x": torch.randn(2, 8)}
    models = [prepared(Keeping("attribute"))[0] for _ in range(2)]
    for model in models:
        model.zo_step([one])
    during = own()
    for model in models:
        model.zo_step([one])
    assert own() == during != before
    zo2.release(models[0])
    models[1].zo_step([one])
    assert own() == during
    del model
    models.clear()
    gc.collect()
    assert own() == before


class Stateful(nn.Module):
    """Adds what it met first."""

    state = None

    def forward(self, x):
        if self.state is None:
            self.state = x
        return x + self.state


class Acting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.act = nn.Identity()

    def forward(self, x):
        return {"loss": self.layers[1](self.act(self.layers[0](x))).square().mean()}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("put", [Acting.__setattr__, Acting.add_module])
def test_a_module_that_is_put_in_between_steps_is_watched_too(put, copied):
    trained, _ = prepared(Acting())
    batches = [{"x": torch.randn(n, 8)} for n in (2, 3)]
    for _ in range(2):
        if copied:
            copy.deepcopy(trained)
        trained.zo_step(batches)
    put(trained, "act", Stateful())
    trained.zo_step(batches)  # what one pass keeps is of no shape for the next
    assert trained.act.state is None


def test_an_evaluation_leaves_on_modules_what_its_last_forward_left():
    model, _ = prepared(Keeping("attribute"))
    model.zo_eval()
    model.zo_forward([{"x": torch.randn(2, 8)}, {"x": torch.randn(3, 8)}])
    assert model.state.shape == (3, 8)


class Filling(nn.Module):
    """Reads a weight where it should not, so that recording starts over, and fills a cache."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"one": nn.Linear(4, 4)})])

    def forward(self, x, cache):
        assert not cache
        cache.append(x)
        return {"logits": nn.functional.linear(x, self.layers[0]["one"].weight)}


def test_recording_again_starts_from_the_same_arguments():
    model, _ = prepared(Filling())
    model.zo_eval()
    cache = []
    model(x=torch.ones(2, 4), cache=cache)
    assert len(cache) == 1


def test_a_training_pass_makes_no_cache():
    model = tiny("llama")
    assert "use_cache" in inspect.signature(model.forward).parameters
    trained, _ = prepared(model)
    seen = []
    trained.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True
    )
    trained(**batch(model))
    assert seen
    assert not any(seen)


class Rescaling(nn.Module):
    """Changes a weight in its forward, as RWKV does in evaluation mode."""

    def __init__(self, change):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.change = change

    def forward(self, x):
        self.change(self.layers[0].weight)
        return {"loss": self.layers[0](x).square().mean()}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.div_(2),
        lambda w: w.__imul__(2),
        lambda w: w.copy_(w + 1),
        lambda w: torch.nn.init.zeros_(w),
        lambda w: w.__setitem__(0, 0.0),
    ],
    ids=["div_", "imul", "copy_", "init", "setitem"],
)
def test_a_forward_that_changes_its_weights_is_refused(change):
    model = Rescaling(change)
    before = model.layers[0].weight.clone()
    trained, _ = prepared(model)
    with pytest.raises(zo2.ModelError, match=r"layers\.0\.weight in place"):
        trained(x=torch.ones(2, 4))
    assert torch.equal(trained.layers[0].weight, before)


def test_a_forward_may_freeze_or_look_at_its_weights():
    def change(weight):
        weight.requires_grad_(True)
        assert weight.is_floating_point()

    trained, losses = prepared(Rescaling(change))
    trained(x=torch.ones(2, 4))
    assert len(losses) == 1

"""Models whose modules or parameters are replaced after they were prepared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zo2
from tests.test_engine import CPU
from tests.tiny import batch, tiny
from zo2.engine.placement import Placement
from zo2.engine.structure import Structure

SETTINGS = {**CPU, "lr": 1e-2, "weight_decay": 0.0}


def load(model):
    weights = {name: w.clone() for name, w in tiny("llama", seed=5).state_dict().items()}
    model.load_state_dict(weights, assign=True)


def replace_parameter(model):
    layer = model.model.layers[1].mlp
    layer.up_proj.weight = nn.Parameter(layer.up_proj.weight.detach() + 0.5)


def put_parameter(model):
    place = model.model.layers[0].mlp.down_proj._parameters
    place["weight"] = nn.Parameter(place["weight"].detach() * 2)


def replace_layer(model):
    model.model.layers[0] = copy.deepcopy(model.model.layers[1])


def append_layer(model):
    model.model.layers.append(copy.deepcopy(model.model.layers[1]))
    model.config.num_hidden_layers += 1


def take_layer(model):
    del model.model.layers[1]
    model.config.num_hidden_layers -= 1


def new_head(model):
    torch.manual_seed(3)
    model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)


CHANGES = [
    load, replace_parameter, put_parameter, replace_layer, append_layer, take_layer, new_head,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copies", [True, False])
def test_what_is_new_is_perturbed_and_trained(change, copies):
    """As if the model had been prepared after the change; noise is by the steps so far."""
    one = batch(tiny("llama"))
    model = tiny("llama")
    zo2.prepare(model, zo2.ZOConfig(**SETTINGS), placement=Placement(copies=copies))
    model(**one)
    reference = copy.deepcopy(model)  # an ordinary model
    change(model)
    change(reference)
    before = {name: w.detach().clone() for name, w in reference.named_parameters()}
    zo2.prepare(reference, zo2.ZOConfig(**SETTINGS))
    reference.opt.steps = model.opt.steps
    for _ in range(3):
        assert model(**one).item() == reference(**one).item()
    after, wanted = dict(model.named_parameters()), dict(reference.named_parameters())
    assert after.keys() == wanted.keys() == before.keys()
    for name, weight in after.items():
        assert torch.equal(weight, wanted[name]), name
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change):
    model = tiny("llama")
    structure = Structure(model)
    assert structure.is_same()
    change(model)
    assert not structure.is_same()


def test_steps_change_no_structure():
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**SETTINGS))
    built = model._zo.engine.placements
    one = batch(model)
    for _ in range(3):
        model(**one)
    model.zo_eval()
    model(**one)
    assert model._zo.engine.placements - built <= 1  # what the first pass may have corrected

"""torch.compile on a model's blocks, or around a prepared model."""

from __future__ import annotations

import copy

import pytest
import torch

import zo2
from tests.test_engine import CPU, assert_same
from tests.tiny import batch, tiny
from tests.virtual import VirtualPlacement
from zo2.engine.placement import Placement


@pytest.fixture
def graphs():
    """What was compiled so far; a graph runs the operations as they were written."""
    torch._dynamo.reset()
    found = []
    yield found
    torch._dynamo.reset()


def compiling(graphs):
    return lambda graph, inputs: (graphs.append(graph), graph.forward)[1]


def in_place(blocks, backend):
    for block in blocks:
        block.compile(backend=backend)


def wrapped(blocks, backend):
    for index, block in enumerate(blocks):
        blocks[index] = torch.compile(block, backend=backend)


def trained(model, placement, unit="block", compile_later=lambda model: model):
    zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-2, unit=unit), placement=placement)
    called = compile_later(model)
    one, short = batch(model), batch(model, 2, 5)
    losses = [called(**inputs).item() for inputs in (one, one, short, one)]
    model.zo_eval()
    losses.append(called(**one).loss.item())
    return losses, {k.replace("_orig_mod.", ""): v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("compile_blocks", [in_place, wrapped])
@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [None, 2])
def test_compiled_blocks_give_the_same_steps(slots, unit, compile_blocks, graphs):
    placement = slots and Placement(slots=slots, copies=True)
    model = tiny("llama")
    losses, weights = trained(copy.deepcopy(model), placement, unit)
    compile_blocks(model.model.layers, compiling(graphs))
    others, compiled = trained(model, placement, unit)
    assert graphs
    assert losses == others
    assert_same(weights, compiled)


@pytest.mark.parametrize("compile_blocks", [in_place, wrapped])
def test_compiled_blocks_that_steps_go_through_at_once_and_evaluations_do_not(
    compile_blocks, graphs
):
    """What was compiled for steps, without hooks within, must not run in evaluations."""
    model = tiny("llama")

    def answers(model):
        placement = VirtualPlacement(slots=2, copies=True)
        zo2.prepare(model, zo2.ZOConfig(**CPU, lr=1e-2, unit="leaf"), placement=placement)
        one = batch(model)
        for _ in range(2):
            yield from (model(**one).item() for _ in range(3))
            model.zo_eval()
            yield model(**one, use_cache=False).loss.item()
            model.zo_train()

    expected = list(answers(copy.deepcopy(model)))
    compile_blocks(model.model.layers, compiling(graphs))
    assert list(answers(model)) == expected
    assert graphs


def test_blocks_may_be_compiled_after_the_model_was_prepared(graphs):
    model = tiny("opt")
    losses, weights = trained(copy.deepcopy(model), None)

    def compile_later(model):
        in_place(model.model.decoder.layers, compiling(graphs))
        return model

    others, compiled = trained(model, None, compile_later=compile_later)
    assert graphs
    assert losses == others
    assert_same(weights, compiled)


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_prepared_model_that_is_compiled_as_a_whole_runs_as_it_is(how, graphs):
    model = tiny("llama")
    losses, weights = trained(copy.deepcopy(model), None)

    def compile_later(model):
        if how == "wrapped":
            return torch.compile(model, backend=compiling(graphs))
        model.compile(backend=compiling(graphs))
        return model

    others, compiled = trained(model, None, compile_later=compile_later)
    assert losses == others
    assert_same(weights, compiled)


def test_a_model_that_was_compiled_as_a_whole_is_refused():
    with pytest.raises(zo2.ModelError, match="Prepare the model itself"):
        zo2.prepare(torch.compile(tiny("llama")), zo2.ZOConfig(**CPU))

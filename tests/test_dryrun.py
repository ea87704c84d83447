"""Operations of a forward, by formula; what is alive in one is in test_planning."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zo2
from tests.tiny import FAMILIES, tiny
from zo2 import planning
from zo2.dryrun import _Living, dry_run
from zo2.engine.placement import Placement


@pytest.mark.parametrize("tokens", [256, 4096])
def test_operations_of_a_llama(tokens):
    """Two for each weight of a product and token; attention's of all pairs where a release makes a
    mask of a batch without padding, half as many where it does not.
    """
    model = planning.build("smollm2-135m", "bfloat16")
    layers, hidden, wide, key_value, words = 30, 576, 1536, 192, 49152
    weights = layers * (2 * hidden**2 + 2 * hidden * key_value + 3 * hidden * wide) + words * hidden
    half = layers * 2 * tokens**2 * hidden
    found = dry_run(model, 1, tokens).flops
    expected = [2 * weights * tokens + times * half for times in (1, 2)]
    assert any(found == pytest.approx(one, rel=0.002) for one in expected)


def test_operations_of_eager_attention_are_those_of_all_pairs():
    tokens, layers, hidden = 1024, 2, 32
    model = tiny("llama", attn_implementation="eager").to("meta")
    short, long = (dry_run(model, 2, one).flops for one in (tokens, 2 * tokens))
    # what is linear in the tokens doubles, and goes in this difference
    assert long - 2 * short == pytest.approx(2 * layers * 2 * 2 * 2 * tokens**2 * hidden, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_operations_of_experts_are_those_of_the_ones_that_tokens_go_to(dtype):
    model = tiny("mixtral", dtype=dtype, attn_implementation="eager")
    config, tokens = model.config, 2 * 48
    hidden, kv = config.hidden_size, 32 * config.num_key_value_heads // config.num_attention_heads
    experts = 3 * hidden * config.intermediate_size * config.num_experts_per_tok
    layer = 2 * hidden**2 + 2 * hidden * kv + hidden * config.num_local_experts + experts
    weights = config.num_hidden_layers * layer + config.vocab_size * hidden
    pairs = config.num_hidden_layers * 2 * 2 * 48**2 * hidden  # of two examples
    found = dry_run(model.to("meta"), 2, 48).flops
    assert found == pytest.approx(2 * tokens * weights + 2 * pairs, rel=0.01)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_model_can_be_planned_in_every_precision(family):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = tiny(family, dtype=dtype).to("meta")
        seen = dry_run(model, 2, 48)
        assert seen.flops > 2 * 96 * 32**2
        assert 0 < seen.activations("block", 2) <= seen.activations("leaf", 2)


class _Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gpt2"])
def test_as_many_operations_are_called_as_with_data(family):
    model = tiny(family)
    ids = torch.randint(5, 90, (2, 48))
    with _Counting() as counting, torch.no_grad():
        model(input_ids=ids, labels=ids, use_cache=False)
    assert dry_run(model.to("meta"), 2, 48).calls == pytest.approx(counting.calls, rel=0.1)


N, ROWS = 96, 4  # of elements, of 4 bytes each, in as many rows


@pytest.mark.parametrize(
    ("operation", "elements"),
    [
        (lambda x: x.relu(), 2 * N),
        (lambda x: x.add(1), 2 * N),
        (lambda x: x + x[0], 2 * N + N // ROWS),
        (lambda x: x + x[:, :1].expand(x.shape), 3 * N),  # as much as lies in between
        (lambda x: x.add_(x), 3 * N),
        (lambda x: x.to(torch.bfloat16), 3 * N // 2),
        (lambda x: x.mean(), N + 1),
        (lambda x: x.t()[2:].expand(3, -1, -1), 0),
        (lambda x: x.new_empty(7), 0),
        (lambda x: torch.zeros(7, device=x.device), 7),
        (lambda x: x @ x.t(), 0),  # counted by its products
        (lambda x: x[torch.zeros(2, dtype=torch.long, device="meta")], 2 * 2 * N // ROWS + 4),
    ],
)
def test_bytes_that_operations_move(operation, elements):
    """Those of the tensors that are read or written."""
    x = torch.empty(ROWS, N // ROWS, device="meta")
    with _Living() as living:
        operation(x)
    assert living.moved == 4 * elements


def test_norms_take_the_time_of_the_memory():
    """Some 40 GB of them beside 32 TFLOP of products, in a Llama of 8 billion weights."""
    step = planning.work(planning.build("llama-3.1-8b", "bfloat16"), "block", 1, 2048)
    products, rest = step.flops / planning.H200.compute, step.moved / planning.H200.memory
    assert 0.15 < rest / products < 0.3


def test_a_forward_that_depends_on_data_cannot_be_foreseen():
    model = tiny("llama").to("meta")
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args: args[0][args[0] > 0])
    with pytest.raises(zo2.ModelError, match="measured at the first step"):
        dry_run(model, 2, 48)


def test_a_forward_that_asks_for_something_else_says_so():
    def refuse(module, args):
        raise ValueError("Input language unknown.")

    model = tiny("llama").to("meta")
    model.model.layers[1].register_forward_pre_hook(refuse)
    with pytest.raises(zo2.ModelError, match=r"Input language unknown.*first step"):
        dry_run(model, 2, 48)


def test_predictions_know_that_attention_grows_faster_than_texts():
    model = planning.build("smollm2-135m", "bfloat16")
    everything = Placement(budget=1 << 50)
    short, long = (
        planning.predict(planning.work(model, "block", 1, tokens), everything)
        for tokens in (1024, 8192)
    )
    noise = planning.H200.noise  # and what does not depend on tokens at all
    made = sum(one.numel() for one in model.parameters()) / noise
    assert (long.compute - made) / (short.compute - made) > 8 * 1.3

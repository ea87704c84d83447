"""Operations of a forward, by formula. (What is alive in one is in test_planning.)"""

from __future__ import annotations

import pytest

from tests.tiny import tiny
from zo2 import planning
from zo2.dryrun import dry_run
from zo2.engine.placement import Placement


@pytest.mark.parametrize("tokens", [256, 4096])
def test_operations_of_a_llama(tokens):
    """Two for each weight of a product and token, and a causal attention's half of its matrix."""
    model = planning.build("smollm2-135m", "bfloat16")
    layers, hidden, wide, key_value, words = 30, 576, 1536, 192, 49152
    weights = layers * (2 * hidden**2 + 2 * hidden * key_value + 3 * hidden * wide) + words * hidden
    attention = layers * 2 * 2 * tokens**2 * hidden / 2
    found = dry_run(model, 1, tokens).flops
    assert found == pytest.approx(2 * weights * tokens + attention, rel=0.002)


def test_operations_of_eager_attention_are_those_of_all_pairs():
    tokens, layers, hidden = 1024, 2, 32
    model = tiny("llama", attn_implementation="eager").to("meta")
    short, long = (dry_run(model, 2, one).flops for one in (tokens, 2 * tokens))
    # what is linear in the tokens doubles, and goes in this difference
    assert long - 2 * short == pytest.approx(2 * layers * 2 * 2 * 2 * tokens**2 * hidden, rel=0.01)


def test_predictions_know_that_attention_grows_faster_than_texts():
    model = planning.build("smollm2-135m", "bfloat16")
    everything = Placement(budget=1 << 50)
    short, long = (
        planning.predict(planning.work(model, "block", 1, tokens), everything)
        for tokens in (1024, 8192)
    )
    noise = planning.H200.noise  # and what does not depend on tokens at all
    made = sum(one.numel() for one in model.parameters()) / noise
    assert (long.compute - made) / (short.compute - made) == pytest.approx(8 * 1.814, rel=0.01)

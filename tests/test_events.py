"""What users do to a model between its steps, in whatever order: streamed, it goes as resident."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import zo2
from tests.test_engine import CPU, assert_same, toy, toy_batch
from zo2.engine.placement import Placement

MODES = {
    "buffers": {"placement": Placement(slots=2, copies=True)},
    "leaves": {"unit": "leaf", "placement": Placement(slots=1, copies=True, write_back_every=3)},
    "embeddings": {"placement": Placement(slots=2, copies=True, outside=True)},
}
PRECISIONS = st.sampled_from([torch.float32, torch.bfloat16])
PARAMETERS = st.integers(0, 30)  # which one, counted round and round
EVENTS = st.one_of(
    st.tuples(st.just("steps"), st.integers(1, 4)),
    st.tuples(st.just("steps"), st.integers(1, 4)),
    st.tuples(st.just("steps"), st.integers(1, 4)),
    st.tuples(st.just("evaluate"), st.none()),
    st.tuples(st.just("read"), PARAMETERS),
    st.tuples(st.just("write"), PARAMETERS),
    st.tuples(st.just("freeze"), PARAMETERS),
    st.tuples(st.just("convert"), PRECISIONS),
    st.tuples(st.just("load"), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("lr"), st.sampled_from([0.0, 1e-3, 1e-1])),
    st.tuples(st.just("drop"), st.none()),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("spoil"), PARAMETERS),
)


def played(model, events, window, placement=None, **config):
    """What a copy of ``model`` answers, and the weights that it has in the end."""
    model = copy.deepcopy(model)
    config = {**CPU, "lr": 1e-2, "weight_decay": 0.1, "update_window": window, **config}
    zo2.prepare(model, zo2.ZOConfig(**config), placement=placement)
    parameters = list(model.parameters())
    seen = []
    for number, (what, value) in enumerate(events):
        one = toy_batch(seed=number, length=4 + number % 2)
        chosen = parameters[value % len(parameters)] if isinstance(value, int) else None
        if what == "steps":
            seen += [model(**one).item() for _ in range(value)]
        elif what == "evaluate":
            model.zo_eval()
            seen.append(model(**one)[0].item())
            model.zo_train()
        elif what == "read":
            seen.append(chosen.detach().float().sum().item())
        elif what == "write":
            with torch.no_grad():
                chosen.mul_(0.5)
        elif what == "freeze":
            chosen.requires_grad_(not chosen.requires_grad)
            if not any(parameter.requires_grad for parameter in parameters):
                chosen.requires_grad_(True)
        elif what == "convert":
            model.to(value)
        elif what == "load":
            model.load_state_dict({k: v.clone() * value for k, v in model.state_dict().items()})
        elif what == "lr":
            model.opt.lr = value
        elif what == "drop":
            model.opt.projected_grad = 0
        elif what == "copy":
            copied = copy.deepcopy(model)
            seen.append(sum(p.detach().float().sum().item() for p in copied.parameters()))
        elif what == "spoil":
            before = chosen.detach().clone()
            with torch.no_grad():
                chosen.fill_(float("nan"))
            with pytest.raises(zo2.NonFiniteLossError):
                model(**one)
            with torch.no_grad():
                chosen.copy_(before)
    return seen, dict(zo2.release(model).state_dict())


# an update is pending while weights are converted, and an evaluation comes before the next step
@example(
    events=[("steps", 2), ("convert", torch.bfloat16), ("evaluate", None), ("steps", 2)],
    window=1, dtype=torch.float32,
)  # fmt: skip
@settings(deadline=None, max_examples=25)
@given(
    events=st.lists(EVENTS, min_size=4, max_size=16),
    window=st.sampled_from([1, 3]),
    dtype=PRECISIONS,
)
@pytest.mark.parametrize("mode", MODES)
def test_streamed_models_answer_as_resident_ones(mode, events, window, dtype):
    model = toy(4).to(dtype)
    seen, weights = played(model, events, window, zo2=False)
    found, others = played(model, events, window, **MODES[mode])
    assert found == seen
    assert_same(weights, others)

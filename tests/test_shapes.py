"""Shapes are the published models', and with weights they compute what these would."""

from __future__ import annotations

import pytest
import torch

from zo2 import planning
from zo2.shapes import SHAPES

# parameters, embeddings included, that the models' cards or papers name
PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "smollm2-135m": 134_515_008,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-2-2b": 2_614_341_888,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_as_many_weights_as_the_models(name):
    model = planning.build(name, "float16")
    assert sum(one.numel() for one in model.parameters()) == PUBLISHED[name]


def test_what_lies_on_disk_comes_before_a_shape_of_its_name(tmp_path, monkeypatch):
    SHAPES["opt-125m"]().save_pretrained(tmp_path / "opt-1.3b")
    monkeypatch.chdir(tmp_path)
    assert planning.build("opt-1.3b", "float16").config.hidden_size == 768


def test_a_shape_with_memory_computes_what_a_model_of_its_configuration_does():
    transformers = pytest.importorskip("transformers")
    from benchmarks import shapes

    model = shapes.empty("smollm2-135m", "float32")
    shapes.fill(model)
    other = transformers.AutoModelForCausalLM.from_config(SHAPES["smollm2-135m"]())
    other.load_state_dict(model.state_dict())
    ids = torch.randint(49152, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = other.eval()(input_ids=ids, labels=ids)
        found = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)

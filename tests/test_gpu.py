"""On a CUDA device: streams, slots and events give the bits of a resident model."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

import zo2
from tests.oracle import direction
from tests.tiny import batch, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = {"working_device": "cuda:0", "seed": 7, "lr": 1e-4, "weight_decay": 0.1}


def wide(family="llama", dtype=torch.float16):
    """Blocks of some megabytes, so that copies take long enough to be overtaken."""
    sizes = {
        "llama": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6},
        "opt": {
            "hidden_size": 512,
            "word_embed_proj_dim": 512,
            "ffn_dim": 2048,
            "num_hidden_layers": 6,
        },
    }
    return tiny(family, dtype=dtype, **sizes[family])


def train(model, steps=12, **settings):
    model = copy.deepcopy(model)
    zo2.prepare(model, zo2.ZOConfig(**{**CUDA, **settings}))
    one = batch(model)
    losses = [model(**one).item() for _ in range(steps)]
    return losses, {name: value.cpu().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_streamed_equals_resident(family, dtype):
    model = wide(family, dtype)
    losses, weights = train(model, zo2=False)
    variants = [
        {},
        {"slots": 2},
        {"overlap": False},
        {"offloading_blocks": [0, 2, 4]},
        {"unit": "leaf"},
        {"unit": "leaf", "slots": 2},
        {"update_window": 1, "slots": 6},
    ]
    for variant in variants:
        other_losses, other = train(model, **variant)
        assert losses == other_losses, variant
        for name in weights:
            assert torch.equal(weights[name], other[name]), (variant, name)


@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1"])
@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_every_family_and_method_streams(family, method):
    model = wide()
    losses, weights = train(model, 4, zo2=False, direction=family, method=method)
    other_losses, other = train(model, 4, slots=2, direction=family, method=method)
    assert losses == other_losses
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def test_passes_equal_plain_forwards():
    model = wide(dtype=torch.bfloat16)
    one = {name: value.cuda() for name, value in batch(model).items()}
    from zo2.directions.seeds import child_seed

    z = direction(model, child_seed(7, 0))
    expected = []
    for scale in (1e-3, -1e-3):
        other = copy.deepcopy(model).cuda()
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(parameter.float() + z[name].cuda() * scale)
            expected.append(other(**one).loss.float().item())
    seen = []
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    estimate = model._zo.method.estimate
    model._zo.method.estimate = lambda p, losses, eps: (
        seen.extend(losses) or estimate(p, losses, eps)
    )
    model(**one)
    assert seen == expected


def test_first_update_is_the_same_on_cpu_and_gpu():
    model = tiny("llama")
    one = batch(model)
    results = []
    for device in ("cpu", "cuda:0"):
        other = copy.deepcopy(model)
        zo2.prepare(other, zo2.ZOConfig(**{**CUDA, "working_device": device}))
        other(**one)
        other.opt.projected_grad = 0.5  # the forwards differ by rounding, the update must not
        results.append({k: v.cpu().clone() for k, v in other.state_dict().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_evaluation_generation_and_reading_on_a_streamed_model(tmp_path):
    import transformers

    model = wide(dtype=torch.float32)
    ids = batch(model, padded=False)["input_ids"]
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    for _ in range(2):
        model(input_ids=ids, labels=ids)
    model.zo_eval()
    logits = model(input_ids=ids).logits
    tokens = model.generate(ids[:, :4].cuda(), max_new_tokens=5, do_sample=False)
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).cuda().eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids.cuda()).logits, logits)
    assert torch.equal(plain.generate(ids[:, :4].cuda(), max_new_tokens=5, do_sample=False), tokens)
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "cpu"
    assert model.model.layers[0].mlp.up_proj.weight.is_pinned()
    released = zo2.release(model)
    assert torch.equal(released.get_parameter("lm_head.weight").cpu(), plain.lm_head.weight.cpu())


def test_memory_returns_when_the_model_goes():
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = wide()
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    model(**batch(model))
    assert torch.cuda.memory_allocated() > before
    zo2.release(model)
    del model
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_streamed_model_needs_less_device_memory_than_its_weights():
    model = wide(dtype=torch.float32)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    zo2.prepare(model, zo2.ZOConfig(**CUDA, slots=2))
    assert torch.cuda.memory_allocated() - before < 0.7 * weights

"""LoRA, prefix tuning and prompt tuning: only adapters are perturbed, updated and written back."""

from __future__ import annotations

import copy
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local model has no page to look at
pytest.importorskip("peft")

import peft
from transformers import Cache

import zo2
from tests.oracle import naive_mezo
from tests.test_engine import CPU
from tests.tiny import batch, tiny
from zo2.engine.placement import Placement

ADAPTERS = {
    "lora": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    ),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix with a projection": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=4,
        task_type="CAUSAL_LM",
        prefix_projection=True,
        encoder_hidden_size=16,
    ),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}
STREAMED = Placement(slots=2, copies=True)


def adapted(kind: str, family: str = "llama", dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return peft.get_peft_model(tiny(family, dtype=dtype), ADAPTERS[kind]()).eval()


def prepared(model, placement=STREAMED, **settings):
    return zo2.prepare(
        model,
        zo2.ZOConfig(**{**CPU, "lr": 1e-2, "weight_decay": 0.0, **settings}),
        placement=placement,
    )


def frozen(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("placement", [None, STREAMED], ids=["in place", "streamed"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_train_as_by_plain_mezo_and_the_base_stays(kind, family, placement):
    model = adapted(kind, family)
    batches = [batch(tiny(family), seed=seed) for seed in range(2)]
    losses, expected = naive_mezo(model, batches, lr=1e-2, seed=3, steps=3)
    base, adapters = frozen(model), trained(model)
    prepared(model, placement, seed=3)
    found = [model(**batches[step % 2]).item() for step in range(3)]
    assert found == [plus for plus, _ in losses]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for name, before in base.items():
        assert torch.equal(model.get_parameter(name), before), name
    assert not any(torch.equal(model.get_parameter(n), before) for n, before in adapters.items())


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_base_weights_are_read_and_never_written_back(kind, unit):
    model = adapted(kind)
    prepared(model, unit=unit)
    one = batch(tiny("llama"))
    model(**one)
    engine, addresses = model._zo.engine, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            addresses[name] = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
    written: list[tuple[int, int]] = []
    lanes = engine._workspace.stream._lanes
    write_back = lanes.write_back

    def noting(to, source, after):
        written.append((to.data_ptr(), to.data_ptr() + to.nbytes))
        return write_back(to, source, after)

    lanes.write_back = noting
    for _ in range(3):
        model(**one)
    model.zo_settle()
    for start, end in written:
        for name, (first, last) in addresses.items():
            assert end <= first or last <= start, name
    blocks = [p for n, p in model.named_parameters() if ".layers." in n and p.requires_grad]
    assert bool(written) == bool(blocks)  # LoRA lies within the blocks, a prefix outside
    padded = sum(-(-p.nbytes // 64) * 64 for p in blocks)
    assert sum(end - start for start, end in written) == 3 * padded


def test_a_half_precision_base_keeps_its_bytes():
    model = adapted("lora", dtype=torch.bfloat16)
    base = frozen(model)
    assert {value.dtype for value in base.values()} == {torch.bfloat16}
    prepared(model, lr=1e-1)
    before = trained(model)
    for seed in range(3):
        model(**batch(tiny("llama"), seed=seed))
    for name, value in base.items():
        assert torch.equal(model.get_parameter(name).view(torch.int16), value.view(torch.int16))
    assert all(not torch.equal(value, model.get_parameter(n)) for n, value in before.items())


def test_freezing_and_unfreezing_after_preparation_is_noticed():
    model = prepared(adapted("lora"))
    one = batch(tiny("llama"))
    model(**one)
    name = "base_model.model.model.layers.0.mlp.up_proj.weight"
    parameter = model.get_parameter(name)
    model.zo_settle()
    before = parameter.detach().clone()
    parameter.requires_grad_(True)
    model(**one)
    assert not torch.equal(parameter, before)
    parameter.requires_grad_(False)
    before = parameter.detach().clone()
    model(**one)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_saved_adapters_lack_nothing(kind, tmp_path):
    model = adapted(kind)
    base = copy.deepcopy(model.get_base_model())
    prepared(model, lr=1e-1)
    one = batch(tiny("llama"))
    for _ in range(3):
        model(**one)
    model.save_pretrained(tmp_path)
    model.zo_eval()
    logits = model(**one).logits
    again = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(**one).logits, logits)
    assert not (tmp_path / "model.safetensors").exists()


def test_an_adapter_on_the_classification_head():
    torch.manual_seed(0)
    model = peft.get_peft_model(
        tiny("llama", "sequence"),
        peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"),
    ).eval()
    one = batch(tiny("llama", "sequence"))
    losses, expected = naive_mezo(model, [one], lr=1e-2, seed=3, steps=2)
    prepared(model, seed=3)
    assert [model(**one).item() for _ in range(2)] == [plus for plus, _ in losses]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert sum("modules_to_save" in name for name in trained(model)) == 1


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_run_of_the_trainer_and_a_resumed_one(kind, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    from zo2.trainer import ZOTrainer

    both = batch(tiny("llama"), n=12, seed=7)
    examples = [{name: value[row] for name, value in both.items()} for row in range(12)]

    def run(resume: bool):
        model = adapted(kind)
        base = frozen(model)
        prepared(model, seed=3, lr=1e-1)
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2,
            max_steps=6, save_steps=4, use_cpu=True, report_to=[],
        )  # fmt: skip
        ZOTrainer(model, args, train_dataset=examples).train(resume_from_checkpoint=resume)
        for name, value in base.items():
            assert torch.equal(model.get_parameter(name), value), name
        return trained(model)

    straight = run(resume=False)
    saved = tmp_path / "checkpoint-6"
    assert not list(saved.glob("model*.safetensors"))
    again = peft.PeftModel.from_pretrained(tiny("llama"), str(saved))
    for name, value in straight.items():
        assert torch.equal(again.get_parameter(name), value), name
    (saved / "trainer_state.json").unlink()
    with pytest.warns(UserWarning, match="checkpoint-6 was not saved to its end"):
        resumed = run(resume=True)
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("task", ["CAUSAL_LM", None], ids=["causal", "generic"])
def test_training_passes_keep_no_cache(task):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type=task)
    model = prepared(peft.get_peft_model(tiny("llama"), config).eval())
    layer = model.get_base_model().model.layers[0]
    calls = []
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append({**kwargs, "args": args}), with_kwargs=True
    )
    model(**batch(model))
    assert calls
    assert not [name for call in calls for name, value in call.items() if isinstance(value, Cache)]

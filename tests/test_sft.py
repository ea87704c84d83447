"""ZOSFTTrainer with the installed trl: datasets, what counts in the loss, metrics, adapters."""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys

import pytest
import torch
from packaging.version import Version
from torch.nn import functional

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local model has no page to look at
pytest.importorskip("trl")

import datasets
import trl
from transformers import TrainingArguments

import zo2
from tests import checkpoint
from tests.test_engine import CPU
from tests.tiny import FAMILIES, tiny
from tests.trainers import UNATTENDED, Log
from verify import rows
from zo2.engine.placement import Placement
from zo2.trainer.hf_trl.missing import install_line
from zo2.trainer.hf_trl.sft_trainer import ZOSFTTrainer

TRL = Version(trl.__version__)
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] + ': ' + message['content'] }}</s>"
    "{% endfor %}"
)
TEXTS = [{"text": f"a fine film of {n} hours It was great"} for n in range(12)]
ANSWERS = [
    {"prompt": f"a dull film of {n} hours It was", "completion": " terrible"} for n in range(12)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"the soup number {n}"},
            {"role": "assistant", "content": "was good" if n % 2 else "was bad and late"},
        ]
    }
    for n in range(12)
]
KINDS = {"text": TEXTS, "chat": CHATS}
if Version("0.13") <= TRL:  # before, prompts and completions were always chats
    KINDS["prompt and completion"] = ANSWERS


def tokenizer():
    made = checkpoint.tokenizer()
    made.chat_template = CHAT
    return made


def config(folder, **changes):
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        **UNATTENDED,
        "bf16": False,
        "lr_scheduler_type": "constant",
        **changes,
    }
    if "max_length" in options and not hasattr(trl.SFTConfig, "max_length"):
        options["max_seq_length"] = options.pop("max_length")
    return trl.SFTConfig(str(folder), **options)


def settings(**changes):
    return zo2.ZOConfig(**{**CPU, "lr": 1e-2, "weight_decay": 0.0, "eps": 1e-7, **changes})


def trainer(model, folder, examples=TEXTS, zo_config=None, callbacks=(), eval_rows=None, **changes):
    made = ZOSFTTrainer(
        model,
        config(folder, **changes.pop("config", {})),
        train_dataset=datasets.Dataset.from_list(examples),
        eval_dataset=eval_rows and datasets.Dataset.from_list(eval_rows),
        processing_class=tokenizer(),
        zo_config=None if hasattr(model, "zo_training") else zo_config or settings(),
        callbacks=[seen := Log(), *callbacks],
        **changes,
    )
    made.log_seen = seen
    made.inputs_seen = inputs = []
    made.register_zo2_training_step_pre_hook(lambda model, batch: inputs.append(dict(batch)))
    return made


def mean_loss(model, batches) -> float:
    """Cross entropy over all labels of ``batches``, from the model's logits."""
    total, count = 0.0, 0
    for one in batches:
        inputs = {
            k: v for k, v in one.items() if k in ("input_ids", "attention_mask", "position_ids")
        }
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1].float()
        labels = one["labels"][:, 1:]
        total += functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_over_the_tokens_that_trl_says(kind, tmp_path):
    model = checkpoint.llama()
    plain = copy.deepcopy(model)
    options = {"gradient_accumulation_steps": 2, "max_steps": 1}
    made = trainer(model, tmp_path, KINDS[kind], config=options)
    made.train()
    assert len(made.inputs_seen) == 2
    expected = mean_loss(plain, made.inputs_seen)
    assert made.log_seen.values("loss") == pytest.approx([expected], abs=6e-5)
    text = made.processing_class.decode(made.inputs_seen[0]["input_ids"][0])
    kept = made.inputs_seen[0]["labels"][0]
    learnt = made.processing_class.decode(kept[kept != -100])
    if kind == "prompt and completion":
        assert learnt.startswith(" terrible")
        assert "a dull film" in text
    if kind == "chat":
        assert "<s>user: the soup number" in text


def plain_trl(model, folder, examples, **options) -> list[float]:
    """What trl's own trainer logs, without dropout and with a learning rate of 0."""
    made = trl.SFTTrainer(
        model,
        config(folder, learning_rate=0.0, **options),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer(),
        callbacks=[seen := Log()],
    )
    model.train = lambda mode=True: model
    made.train()
    return seen.values("loss")


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_rows_without_padding_are_as_by_trl(option, tmp_path):
    if Version("0.18") > TRL:
        pytest.skip(f"trl {TRL} packs rows of one length only")
    options = {option: True, "max_length": 40 if option == "packing" else None, "max_steps": 1}
    made = trainer(checkpoint.llama(), tmp_path, TEXTS, config=options)
    made.train()
    expected = plain_trl(checkpoint.llama(), tmp_path, TEXTS, **options)
    assert made.log_seen.values("loss") == pytest.approx(expected, abs=6e-5)
    assert made.inputs_seen[0]["input_ids"].shape[0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    model = tiny(family, vocab_size=304)
    model.config.use_cache = False  # as in a step; with a cache, some compute another attention
    twin = copy.deepcopy(model)
    made = trainer(model, tmp_path, config={"max_steps": 1})
    made.train()
    (batch,) = made.inputs_seen
    plain = trl.SFTTrainer(
        twin,
        config(tmp_path),
        train_dataset=datasets.Dataset.from_list(TEXTS),
        processing_class=tokenizer(),
    )
    with torch.no_grad():
        expected = plain.compute_loss(twin.eval(), dict(batch)).item()
    assert made.log_seen.values("loss") == pytest.approx([expected], abs=2e-4)
    assert model.opt.steps == 1


def test_the_assistants_words_alone(tmp_path):
    if "assistant_only_loss" not in trl.SFTConfig.__dataclass_fields__:
        pytest.skip(f"trl {TRL} has no assistant_only_loss")
    tokens = tokenizer()
    tokens.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}"
        "{% endif %}</s>{% endfor %}"
    )
    model = checkpoint.llama()
    plain, seen = copy.deepcopy(model), []
    made = ZOSFTTrainer(
        model,
        config(tmp_path, assistant_only_loss=True, max_steps=1),
        train_dataset=datasets.Dataset.from_list(CHATS),
        processing_class=tokens,
        zo_config=settings(),
        callbacks=[log := Log()],
    )
    made.register_zo2_training_step_pre_hook(lambda model, batch: seen.append(dict(batch)))
    made.train()
    assert log.values("loss") == pytest.approx([mean_loss(plain, seen)], abs=6e-5)
    kept = seen[0]["labels"][0]
    assert tokens.decode(kept[kept != -100]).strip() in ("was good", "was bad and late")


def test_completions_that_are_chats(tmp_path):
    if Version("0.16") > TRL:
        pytest.skip(f"trl {TRL} has no chats of prompt and completion")
    examples = [
        {
            "prompt": [{"role": "user", "content": f"soup {n}"}],
            "completion": [{"role": "assistant", "content": "was good"}],
        }
        for n in range(12)
    ]
    made = trainer(checkpoint.llama(), tmp_path, examples, config={"max_steps": 1})
    made.train()
    kept = made.inputs_seen[0]["labels"][0]
    assert "was good" in made.processing_class.decode(kept[kept != -100])
    assert "soup" not in made.processing_class.decode(kept[kept != -100])


def test_a_resumed_run_is_bit_identical(tmp_path):
    options = {
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    model, other = checkpoint.llama(), checkpoint.llama(seed=3)
    trainer(model, tmp_path, zo_config=settings(eps=1e-3), config=options).train()
    for step in (4, 5):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").unlink(missing_ok=True)
    again = trainer(other, tmp_path, zo_config=settings(eps=1e-3, seed=9), config=options)
    again.train(resume_from_checkpoint=True)
    assert len(again.inputs_seen) == 6
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_completions_alone_through_the_older_collator(tmp_path):
    if not hasattr(trl, "DataCollatorForCompletionOnlyLM"):
        pytest.skip(f"trl {TRL} has completion_only_loss instead")
    tokens = tokenizer()
    answer = tokens.encode("assistant:", add_special_tokens=False)
    model = checkpoint.llama()
    plain = copy.deepcopy(model)
    collator = trl.DataCollatorForCompletionOnlyLM(answer, tokenizer=tokens)
    options = {"gradient_accumulation_steps": 2, "max_steps": 1}
    made = trainer(model, tmp_path, CHATS, config=options, data_collator=collator)
    made.train()
    expected = mean_loss(plain, made.inputs_seen)
    assert made.log_seen.values("loss") == pytest.approx([expected], abs=6e-5)
    kept = made.inputs_seen[0]["labels"][0]
    assert tokens.decode(kept[kept != -100]).startswith(" was")


def test_packed_rows(tmp_path):
    model = checkpoint.llama()
    plain = copy.deepcopy(model)
    options = {"packing": True, "max_length": 24, "max_steps": 1}
    if Version("0.18") <= TRL:
        options["packing_strategy"] = "wrapped"  # the other needs flash attention
    made = trainer(model, tmp_path, TEXTS, config=options)
    made.train()
    assert made.inputs_seen[0]["input_ids"].shape[1] == 24
    expected = mean_loss(plain, made.inputs_seen)
    assert made.log_seen.values("loss") == pytest.approx([expected], abs=6e-5)


def test_metrics_are_noted_once_per_step(tmp_path):
    model = checkpoint.llama()
    plain = copy.deepcopy(model)
    made = trainer(model, tmp_path, config={"gradient_accumulation_steps": 2, "max_steps": 2})
    made.train()
    if not made.log_seen.values("num_tokens"):
        pytest.skip(f"trl {TRL} logs no metrics of its own")
    read = [int(one["attention_mask"].sum()) for one in made.inputs_seen]
    assert made.log_seen.values("num_tokens") == [sum(read[:2]), sum(read)]
    right = []
    for one in made.inputs_seen[:2]:
        with torch.no_grad():
            logits = plain(one["input_ids"], one["attention_mask"]).logits[:, :-1]
        labels = one["labels"][:, 1:]
        right.append((logits.argmax(-1) == labels)[labels != -100].float().mean().item())
    found = made.log_seen.values("mean_token_accuracy")
    assert len(found) == 2
    assert found[0] == pytest.approx(sum(right) / 2, abs=1e-6)


@pytest.mark.parametrize("prepared", [False, True])
def test_evaluation_is_streamed_and_no_step(prepared, tmp_path):
    model = checkpoint.llama()
    plain = copy.deepcopy(model)
    if prepared:
        zo2.prepare(model, settings(), placement=Placement(slots=2, copies=True))
    made = trainer(model, tmp_path, eval_rows=TEXTS[:2])
    batches = list(made.get_eval_dataloader())
    assert made.evaluate()["eval_loss"] == pytest.approx(mean_loss(plain, batches), rel=1e-5)
    assert model.opt.steps == 0
    made.train()
    assert model.opt.steps == 2
    assert made.evaluate()["eval_loss"] == pytest.approx(
        mean_loss(copy.deepcopy(model), batches), rel=1e-5
    )


def test_a_loss_of_the_users_own(tmp_path):
    model = checkpoint.llama()
    plain = copy.deepcopy(model)

    def wrong(logits, labels):
        missed = (logits[:, :-1].argmax(-1) != labels[:, 1:])[labels[:, 1:] != -100]
        return missed.float().mean().item()

    model_loss = []
    made = trainer(model, tmp_path, config={"max_steps": 1})
    model.zo_custom_train_loss_fn = lambda m, ids, logits, labels, **rest: (
        model_loss.append(1) or wrong(logits, labels)
    )
    made.train()
    (one,) = made.inputs_seen
    with torch.no_grad():
        logits = plain(one["input_ids"], one["attention_mask"]).logits
    assert model_loss
    assert made.log_seen.values("loss") == pytest.approx([wrong(logits, one["labels"])], abs=6e-5)


def test_lora_by_peft_config(tmp_path):
    peft = pytest.importorskip("peft")
    model = checkpoint.llama()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    chosen = settings(eps=1e-3, lr=1e-1)
    made = trainer(model, tmp_path / "a", zo_config=chosen, peft_config=adapter, config=options)
    made.train()
    kept = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): value
        for name, value in made.model.state_dict().items()
        if "lora" not in name
    }
    assert all(torch.equal(base[name], value) for name, value in kept.items())
    assert (tmp_path / "a" / "checkpoint-2" / "adapter_model.safetensors").is_file()
    (tmp_path / "a" / "checkpoint-4" / "trainer_state.json").unlink()
    again = trainer(
        checkpoint.llama(), tmp_path / "a", zo_config=chosen, peft_config=adapter, config=options
    )
    again.train(resume_from_checkpoint=True)
    assert len(again.inputs_seen) == 2
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_adapter_around_a_prepared_model_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = zo2.prepare(checkpoint.llama(), settings())
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(zo2.ConfigError, match="Pass the unprepared model and zo_config"):
        trainer(model, tmp_path, peft_config=adapter)


def test_plain_training_arguments_and_a_model_by_path(tmp_path):
    checkpoint.save(tmp_path / "model")
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to=[], save_strategy="no"
    )
    made = ZOSFTTrainer(
        str(tmp_path / "model"),
        args,
        train_dataset=datasets.Dataset.from_list(TEXTS),
        processing_class=tokenizer(),
        zo_config=settings(lr=1e-4),
    )
    made.train()
    assert made.model.opt.steps == 1
    assert made.model.opt.param_groups[0]["initial_lr"] == 1e-4


def test_missing_trl_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "zo2.trainer.hf_trl.sft_trainer")
    line = f"ZOSFTTrainer needs trl: pip install trl=={trl.__version__}"
    with pytest.raises(ModuleNotFoundError, match=re.escape(line)):
        importlib.import_module("zo2.trainer.hf_trl.sft_trainer")


def test_the_line_names_a_trl_that_goes_with_transformers():
    pins = [row.pins for row in rows.load().values()]
    for pin in pins:
        assert install_line(pin["transformers"]) == f"pip install trl=={pin['trl']}"
    newest, oldest = (f(pins, key=lambda p: Version(p["trl"]))["trl"] for f in (max, min))
    assert install_line("99.0") == f"pip install trl=={newest}"
    assert install_line("4.0") == f"pip install trl=={oldest}"


def test_the_places_where_zo2_has_the_trainer():
    import zo2.trainer
    import zo2.trainer.hf_trl

    assert zo2.trainer.ZOSFTTrainer is ZOSFTTrainer is zo2.trainer.hf_trl.ZOSFTTrainer

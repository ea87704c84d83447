"""`ZOMixin` on Trainers that zo2 has no class for: their losses, metrics and generation."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local model has no page to look at
pytest.importorskip("accelerate")

import transformers

import zo2
from tests import checkpoint
from tests.test_engine import CPU
from tests.test_kinds import translates
from tests.test_trainer import as_it_was  # noqa: F401
from tests.trainers import UNATTENDED, Log
from zo2.trainer import ZOMixin

PAIRS = [
    {"prompt": f"the film {n} was", "chosen": f" great {n}", "rejected": " terrible"}
    for n in range(8)
]
SETTINGS = {**CPU, "weight_decay": 0.0, "eps": 1e-7}
ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_steps": 1,
    **UNATTENDED,
    "bf16": False,
    "learning_rate": 1e-3,
}


def test_a_trainer_that_generates_for_its_metrics(tmp_path):
    class ZOSeq2SeqTrainer(ZOMixin, transformers.Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    model, batch = translates()
    model.eval()
    rows = [{name: value[row] for name, value in batch.items()} for row in range(2)]
    with torch.no_grad():
        expected = model(**batch).loss.item()
        tokens = model.generate(batch["input_ids"], max_length=6)
    generated = []
    options = {"predict_with_generate": True, "generation_max_length": 6}
    trainer = ZOSeq2SeqTrainer(
        model,
        transformers.Seq2SeqTrainingArguments(str(tmp_path), **ARGUMENTS, **options),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda found: generated.append(found.predictions) or {},
        zo_config=zo2.ZOConfig(**SETTINGS),
        callbacks=[log := Log()],
    )
    trainer.evaluate()
    trainer.train()
    assert log.values("eval_loss") == pytest.approx([expected], abs=1e-5)
    assert log.values("loss") == pytest.approx([expected], abs=6e-5)
    assert generated[0][:, : tokens.shape[1]].tolist() == tokens.tolist()
    assert model.opt.steps == 1


def rewarding():
    torch.manual_seed(0)
    config = checkpoint.llama().config
    config.num_labels = 1
    return transformers.LlamaForSequenceClassification(config)


def preferring(folder):
    checkpoint.llama().save_pretrained(folder)  # the trainer loads another one to compare with
    return transformers.LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["Reward", "DPO"])
def test_trainers_on_preferences(kind, tmp_path):
    """The first step's loss, and what is logged beside, are those of an evaluation by trl."""
    trl = pytest.importorskip("trl")
    import datasets

    base, config = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    zo = type(f"ZO{kind}Trainer", (ZOMixin, base), {})
    rows = datasets.Dataset.from_list(PAIRS)

    def made(kind, **settings):
        return kind(
            rewarding() if config is trl.RewardConfig else preferring(tmp_path / "model"),
            args=config(str(tmp_path), **ARGUMENTS),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=checkpoint.tokenizer(),
            callbacks=[log := Log()],
            **settings,
        ), log

    plain, _ = made(base)
    expected = plain.evaluate()
    trainer, log = made(zo, zo_config=zo2.ZOConfig(**SETTINGS))
    trainer.train()
    assert log.values("loss") == pytest.approx([expected["eval_loss"]], abs=6e-5)
    noted = {name for entry in log.entries for name in entry} & {"rewards/chosen", "mean_reward"}
    for name in noted:
        assert log.values(name) == pytest.approx([expected[f"eval_{name}"]], abs=6e-5)
    assert trainer.model.opt.steps == 1


def test_a_trainer_that_makes_its_batch_within_the_step_is_refused(tmp_path):
    trl = pytest.importorskip("trl")
    import datasets

    class ZOGRPOTrainer(ZOMixin, trl.GRPOTrainer):
        pass

    options = {"num_generations": 2, "max_completion_length": 4}
    trainer = ZOGRPOTrainer(
        preferring(tmp_path / "model"),
        args=trl.GRPOConfig(str(tmp_path), **ARGUMENTS, **options),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS]),
        reward_funcs=lambda completions, **rest: [float(len(one)) for one in completions],
        processing_class=checkpoint.tokenizer(),
        zo_config=zo2.ZOConfig(**SETTINGS),
    )
    with pytest.raises(zo2.ConfigError, match="Use a Trainer that collates its batches"):
        trainer.train()

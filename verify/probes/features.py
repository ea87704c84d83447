"""What rows with peft, trl and bitsandbytes are for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import tempfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from verify.probes import tiny

_LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


def llama31(options: Mapping[str, Any]) -> dict[str, Any]:
    """A config with Llama 3.1's five-field rope_scaling, and a forward of a model made of it."""
    import torch

    model = tiny.model("llama", rope_scaling=dict(_LLAMA31), max_position_embeddings=256)
    scaling = getattr(model.config, "rope_scaling", None)
    if scaling is None:
        scaling = model.config.rope_parameters
    with torch.no_grad():
        loss = model(**tiny.batch(model)).loss.item()
    return {"scaling": {name: scaling[name] for name in _LLAMA31 if name in scaling}, "loss": loss}


def lora(options: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny model with low-rank adapters: what is trainable, and a zeroth-order step of it."""
    if importlib.util.find_spec("peft") is None:
        return {"version": None}
    import peft

    import zo2

    model = tiny.model("llama")
    total = sum(p.numel() for p in model.parameters())
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = tiny.batch(model.get_base_model())
    zo2.prepare(model, zo2.ZOConfig(working_device=options["device"], lr=1e-2, seed=3))
    loss = model(**batch).item()
    return {"version": peft.__version__, "total": total, "trainable": trainable, "loss": loss}


def quantised(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of QLoRA, and on a GPU a model quantised by them."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"version": None}
    import torch
    import transformers

    bitsandbytes = importlib.import_module("bitsandbytes")

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    found: dict[str, Any] = {
        "version": bitsandbytes.__version__,
        "kind": config.to_dict()["bnb_4bit_quant_type"],
        "error": None,
    }
    if options["gpus"]:
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
        exact = torch.nn.Linear(64, 64, bias=False)
        layer.load_state_dict(exact.state_dict())
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        got = layer.cuda()(x.cuda()).cpu()
        wanted = exact(x)
        found["error"] = ((got - wanted).norm() / wanted.norm()).item()
    return found


def sft(options: Mapping[str, Any]) -> dict[str, Any]:
    """An SFT trainer on a tiny model takes a step on the CPU."""
    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        return {"version": None, "missing": missing}
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    datasets, trl = (importlib.import_module(name) for name in ("datasets", "trl"))

    words = {f"w{i}": i for i in range(3, tiny.VOCABULARY)}
    words |= {"<pad>": 0, "<s>": 1, "</s>": 2}
    whole = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    texts = datasets.Dataset.from_dict({"text": ["w3 w4 w5 w6 w7"] * 4})
    version = metadata.version("trl")
    with tempfile.TemporaryDirectory(prefix="zo2-verify-") as directory:
        arguments = trl.SFTConfig(
            output_dir=directory,
            max_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            fp16=False,
            save_strategy="no",
            logging_steps=1,
            dataloader_pin_memory=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trl.SFTTrainer(
                model=tiny.model("llama"),
                args=arguments,
                train_dataset=texts,
                processing_class=tokenizer,
            )
            loss = trainer.train().training_loss
    return {"version": version, "missing": [], "loss": float(loss)}


PROBES = {
    "features.llama31": llama31,
    "features.lora": lora,
    "features.quantised": quantised,
    "features.sft": sft,
}

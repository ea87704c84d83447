"""Tiny models of many families, made from configs alone, and batches for them.

``tiny("llama")`` is a causal language model; ``head="sequence"`` and ``head="question"`` give
the classification and question-answering heads. A family or head that the installed
transformers lacks skips the test that asked for it.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import nn

VOCABULARY = 96
HEADS = {
    "causal": "ForCausalLM",
    "sequence": "ForSequenceClassification",
    "question": "ForQuestionAnswering",
    "token": "ForTokenClassification",
    "conditional": "ForConditionalGeneration",
}

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
STACKS = {  # of models with an encoder and a decoder
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}

_PLAIN = {
    **SIZES,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# family: (prefix of the class names, arguments of the config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": (
        "Bart",
        {
            **STACKS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "forced_eos_token_id": None,
        },
    ),
    "bloom": (
        "Bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_PLAIN,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "kv_lora_rank": 8,
            "q_lora_rank": 12,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "falcon": (
        "Falcon",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gemma2": ("Gemma2", {**_PLAIN, "head_dim": 8, "sliding_window": 8}),
    "gpt2": ("GPT2", _GPT),
    "gpt_neox": ("GPTNeoX", {**_PLAIN, "rotary_pct": 0.5}),
    "gpt_oss": (
        "GptOss",
        {
            **_PLAIN,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
        },
    ),
    "gptj": ("GPTJ", {**_GPT, "rotary_dim": 4}),
    "llama": ("Llama", _PLAIN),
    "mamba": (
        "Mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mixtral": ("Mixtral", {**_PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "opt": (
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "phi3": ("Phi3", _PLAIN),
    "qwen2": ("Qwen2", _PLAIN),
    "qwen2_moe": ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3", {**_PLAIN, "head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 8}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            **_PLAIN,
            "lru_width": 32,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "attention_window_size": 8,
        },
    ),
    "zamba": (
        "Zamba",
        {
            **_PLAIN,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
        },
    ),
}
_CLASSES = {
    ("gpt2", "causal"): "GPT2LMHeadModel",
    ("opt", "causal"): "OPTForCausalLM",
}


def tiny(
    family: str,
    head: str = "causal",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Any:
    """A model of ``family`` of some ten thousand parameters, in evaluation mode.

    Every parameter is random, so that none of the zeros and ones of an initialisation can hide
    a mistake.

    Args:
        family: a key of `FAMILIES`.
        head: a key of `HEADS`.
        seed: the weights' seed.
        dtype: the weights' precision.
        overrides: further arguments of the config.
    """
    prefix, arguments = FAMILIES[family]
    name = _CLASSES.get((family, head), prefix + HEADS[head])
    model_class = getattr(transformers, name, None)
    config_class = getattr(transformers, f"{prefix}Config", None)
    if model_class is None or config_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = config_class(**{**arguments, **overrides})
    if head == "sequence":
        config.num_labels = 3
    torch.manual_seed(seed)
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def batch(
    model: nn.Module, n: int = 4, length: int = 16, seed: int = 0, padded: bool = True
) -> dict[str, torch.Tensor]:
    """Random keyword arguments of ``model``'s forward, with the labels that its head takes.

    Args:
        model: says by its class which labels are needed.
        n: number of examples.
        length: number of tokens of the longest example.
        seed: seed of the tokens and labels.
        padded: make some examples shorter, with an attention mask where the model takes one.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    ids = 3 + draw(VOCABULARY - 3, n, length)
    lengths = length - draw(length // 4, n) if padded else torch.full((n,), length)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = ids * mask  # 0 is the padding
    ids[torch.arange(n), lengths - 1] = 2  # the end of a text, which BART classifies by
    arguments = {"input_ids": ids}
    if padded and "attention_mask" in inspect.signature(model.forward).parameters:
        arguments["attention_mask"] = mask
    kind = type(model).__name__
    if kind.endswith("ForQuestionAnswering"):
        arguments["start_positions"] = draw(length // 2, n)
        arguments["end_positions"] = length // 2 + draw(length // 4, n)
    elif kind.endswith("ForSequenceClassification"):
        arguments["labels"] = draw(model.config.num_labels, n)
    else:
        arguments["labels"] = ids.masked_fill(mask == 0, -100)
    return arguments

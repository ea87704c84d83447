"""Published models as configurations: what is planned and measured without their weights.

Some are given out only to those who accept a licence, and a shape needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def _opt(layers: int, hidden: int, heads: int) -> Any:
    """Sizes as in arXiv 2205.01068, table 1."""
    import transformers

    return transformers.OPTConfig(
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=50272,
        max_position_embeddings=2048,
        dropout=0.0,
    )


def _of(kind: str, **sizes: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**sizes)


SHAPES: Mapping[str, Callable[[], Any]] = {
    "opt-125m": partial(_opt, 12, 768, 12),
    "opt-1.3b": partial(_opt, 24, 2048, 32),
    "opt-2.7b": partial(_opt, 32, 2560, 32),
    "opt-6.7b": partial(_opt, 32, 4096, 32),
    "opt-13b": partial(_opt, 40, 5120, 40),
    "opt-30b": partial(_opt, 48, 7168, 56),
    "opt-66b": partial(_opt, 64, 9216, 72),
    "opt-175b": partial(_opt, 96, 12288, 96),
    "smollm2-135m": partial(
        _of, "LlamaConfig", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
        tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    "llama-3.1-8b": partial(  # arXiv 2407.21783, table 3
        _of, "LlamaConfig", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
        tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "qwen2.5-7b": partial(  # arXiv 2412.15115, table 1
        _of, "Qwen2Config", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
        tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "gemma-2-2b": partial(  # arXiv 2408.00118, table 1
        _of, "Gemma2Config", hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256, vocab_size=256000,
        max_position_embeddings=8192,
    ),
}  # fmt: skip

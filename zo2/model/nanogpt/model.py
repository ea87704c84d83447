"""A decoder-only transformer in one page, the shape of GPT-2.

Tokens and positions are embedded and added; each block lets every token look back at those
before it (attention) and then think for itself (a feed-forward layer), always adding to what
came in; a last norm and a linear head turn the result into scores for the next token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo2.errors import ConfigError, DataError

IGNORED = -100  # a target that no loss is computed for


@dataclass
class GPTConfig:
    """Shape of a `GPT`.

    Attributes:
        block_size: the longest sequence, in tokens.
        vocab_size: number of different tokens; GPT-2's 50,257 rounded up to a multiple of 64.
        n_layer: number of blocks.
        n_head: attention heads per block; must divide ``n_embd``.
        n_embd: width of the vectors that pass through the blocks.
        dropout: share of values dropped when the module is in torch's training mode.
        bias: whether linear layers and norms add a bias.
    """

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class GPTConfigs:
    """Named sizes; ``tiny`` trains in seconds on a CPU, the others are GPT-2's."""

    tiny = GPTConfig(block_size=64, vocab_size=256, n_layer=2, n_head=2, n_embd=32)
    gpt2 = GPTConfig()
    gpt2_medium = GPTConfig(n_layer=24, n_head=16, n_embd=1024)
    gpt2_large = GPTConfig(n_layer=36, n_head=20, n_embd=1280)
    gpt2_xl = GPTConfig(n_layer=48, n_head=25, n_embd=1600)


class Attention(nn.Module):
    """Every token gathers from itself and those before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.dropout
        self.query_key_value = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        # [rows, length, 3 width] -> three of [rows, heads, length, width / heads]
        split = self.query_key_value(x).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        gathered = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        mixed: Tensor = self.out(gathered.transpose(1, 2).reshape(rows, length, width))
        return mixed


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on a normed copy of its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, bias = config.n_embd, config.bias
        self.norm_1 = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(width, bias=bias)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width, bias=bias),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=bias),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        gathered: Tensor = self.dropout(self.attention(self.norm_1(x)))
        x = x + gathered
        thought: Tensor = self.dropout(self.feed_forward(self.norm_2(x)))
        return x + thought


class GPT(nn.Module):
    """A GPT with random weights; its head has weights of its own."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.n_embd % config.n_head:
            raise ConfigError(f"n_head = {config.n_head} must divide n_embd = {config.n_embd}.")
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(_draw)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "feed_forward.2.weight")):
                # 2 n_layer of these add up along the way: keep the sum's spread that of one
                nn.init.normal_(weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    def forward(
        self, idx: Tensor, pos: Tensor | None = None, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Score the next token at every place.

        Args:
            idx: tokens, [rows, length] int64, at most ``block_size`` long.
            pos: their positions, [length] or [rows, length]; 0, 1, 2, ... by default.
            targets: usually ``idx`` itself, -100 where no loss is wanted: the scores at a place
                are compared with the *following* target.

        Returns:
            Logits [rows, length, vocab_size], and the mean cross entropy in nats (``None``
            without targets).

        Raises:
            DataError: the sequence is longer than ``block_size``.
        """
        length = idx.shape[-1]
        if length > self.config.block_size:
            raise DataError(
                f"A sequence of {length} tokens is longer than block_size = "
                f"{self.config.block_size}: cut it, or raise block_size."
            )
        if pos is None:
            pos = torch.arange(length, device=idx.device)
        x = self.dropout(self.tokens(idx) + self.positions(pos))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        scores, following = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
        return logits, functional.cross_entropy(scores, following, ignore_index=IGNORED)


def _draw(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)

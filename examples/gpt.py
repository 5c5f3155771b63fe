"""A small GPT in the manner of Llama: RMSNorm, rotary positions, grouped queries, SwiGLU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flash_attn2.nn import Attention, RotaryEmbedding


@dataclasses.dataclass(frozen=True)
class Config:
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_heads_kv: int = 2
    vocab_size: int = 256  # bytes

    @property
    def d_hidden(self) -> int:
        """Width of the SwiGLU: 8/3 of d_model, rounded up to a multiple of 64."""
        return -(-8 * self.d_model // 192) * 64


class SwiGLU(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_hidden, bias=False)
        self.down = nn.Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(
        self, config: Config, rotary: RotaryEmbedding, attention: Any, causal: bool = True
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model)
        self.attention = attention(
            config.d_model, config.num_heads, config.num_heads_kv, causal=causal, rotary=rotary
        )
        self.mlp_norm = nn.RMSNorm(config.d_model)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), **options)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """`attention` makes the attention layers: `flash_attn2.nn.Attention`, or one of its kind."""

    def __init__(self, config: Config, attention: Callable[..., Attention] = Attention) -> None:
        super().__init__()
        self.config = config
        rotary = RotaryEmbedding(config.d_model // config.num_heads)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            Block(config, rotary, attention) for _ in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """As GPT-2: normal, and what adds to the residual stream smaller for deeper models."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                adds = name.endswith(("out_proj", "down"))
                std = 0.02 / (2 * self.config.num_layers) ** 0.5 if adds else 0.02
                nn.init.normal_(module.weight, std=std)

    def forward(
        self, tokens: Tensor, *, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None
    ) -> Tensor:
        """float32 logits of the token after each; tokens are (batch, seqlen), or packed (total,)
        with `cu_seqlens` and `max_seqlen`.
        """
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return self.head(self.norm(x)).float()

    def save(self, path: Path) -> None:
        torch.save({"config": dataclasses.asdict(self.config), "model": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> GPT:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        model = cls(Config(**checkpoint["config"])).to(device)
        model.load_state_dict(checkpoint["model"])
        return model

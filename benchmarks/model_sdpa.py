"""The GPT of examples/gpt.py generating as users of SDPA write it: contiguous caches, no pages."""

from __future__ import annotations

from typing import Any

import torch
from gpt import GPT
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SdpaGPT:
    """Sequences of one length side by side; keys and values have their place from the start."""

    def __init__(self, model: GPT, sequences: int, longest: int) -> None:
        config = model.config
        self._model = model
        head_dim = config.d_model // config.num_heads
        shape = (2, sequences, config.num_heads_kv, longest, head_dim)
        dtype = model.head.weight.dtype
        self._caches = [torch.zeros(shape, dtype=dtype) for _ in model.blocks]
        rotary = model.blocks[0].attention.rotary
        cos, sin = rotary.tables(longest, torch.float32, torch.device("cpu"))
        self._cos, self._sin = (torch.cat([half, half], -1).to(dtype) for half in (cos, sin))

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """float32 logits after the last of `tokens` (sequences, count), which follow `start`."""
        model = self._model
        x = model.embedding(tokens)
        for block, cache in zip(model.blocks, self._caches, strict=True):
            x = x + self._attend(block.attention, block.attention_norm(x), cache, start)
            x = x + block.mlp(block.mlp_norm(x))
        return model.head(model.norm(x[:, -1])).float()

    def _attend(self, layer: Any, x: Tensor, cache: Tensor, start: int) -> Tensor:
        heads = (layer.num_heads, layer.num_heads_kv, layer.num_heads_kv)
        qkv = layer.qkv_proj(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        q, k, v = qkv.split(heads, 1)
        end = start + x.shape[1]
        cache[0, :, :, start:end] = self._rotated(k, start, end)
        cache[1, :, :, start:end] = v
        out = scaled_dot_product_attention(
            self._rotated(q, start, end),
            *cache[:, :, :, :end],
            is_causal=start == 0 and end > 1,
            enable_gqa=layer.num_heads != layer.num_heads_kv,
        )
        return layer.out_proj(out.transpose(1, 2).flatten(-2))

    def _rotated(self, heads: Tensor, start: int, end: int) -> Tensor:
        first, second = heads.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return heads * self._cos[start:end] + turned * self._sin[start:end]

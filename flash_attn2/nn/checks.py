"""What layers ask of their input, and of a cache with a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.tensors import require_allocated
from flash_attn2.inference import Step


def check_input(x: Tensor, projection: nn.Module, embed_dim: int, packed: bool) -> None:
    """Of x, which `projection` takes."""
    require_tensor("x", x)
    if x.ndim != (2 if packed else 3) or x.shape[-1] != embed_dim:
        raise ValueError(
            f"x must be (batch, seqlen, {embed_dim}), or (total, {embed_dim}) with "
            f"cu_seqlens, got shape {tuple(x.shape)}"
        )
    require_allocated(x=x)
    if type(projection) is not nn.Linear:  # another layer may take what it likes
        return
    weight = projection.weight
    if x.device != weight.device:
        raise ValueError(
            f"x must be on the device of the parameters, {weight.device}, got {x.device}"
        )
    autocast = torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")
    if x.dtype != weight.dtype and not autocast:
        raise TypeError(f"x must have the dtype of the parameters, {weight.dtype}, got {x.dtype}")


def check_bound(cu_seqlens: Tensor | None, max_seqlen: int | None) -> None:
    if cu_seqlens is None and max_seqlen is not None:
        raise ValueError("max_seqlen must come with cu_seqlens, of packed x, got it alone")


def check_step(cache: Any, step: Any, others: Mapping[str, Any]) -> None:
    """`others` are the arguments that do not go with a cache."""
    if not isinstance(step, Step):
        raise TypeError(
            "step must be a Step, what PagedKVCache.append returns, beside cache, got "
            f"{type(step).__name__}"
        )
    if not isinstance(cache, (tuple, list)) or len(cache) != 2:
        raise TypeError(
            "cache must be (k_cache, v_cache) of this layer, such as PagedKVCache.layers[i], "
            f"beside step, got {type(cache).__name__}"
        )
    for name, value in (("cache[0]", cache[0]), ("cache[1]", cache[1])):
        require_tensor(name, value)
        if value.ndim != 4:
            raise ValueError(
                f"{name} must be (num_pages, page_size, num_heads_kv, head_dim), got shape "
                f"{tuple(value.shape)}"
            )
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} must be None with cache, whose step says what it takes")


def check_mode(layer: nn.Module, looks_ahead: bool, dropout: float) -> None:
    """Whether the layer, as it is now, may attend over a cache."""
    if looks_ahead:
        raise ValueError(
            "cache must go with a layer that has causal=True: in another one, tokens see later "
            "ones, which the cache does not hold yet"
        )
    if layer.training and dropout:
        raise ValueError(
            f"cache must come without dropout, got {dropout} in training mode: call eval()"
        )

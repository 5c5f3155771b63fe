"""What layers do with a cache: they write the tokens of a step, and attend over all it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flash_attn2._impl.arguments import require_tensor
from flash_attn2.inference import Step
from flash_attn2.kvcache import flash_attn_with_kvcache


def attend_over_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cache: tuple[Tensor, ...],
    step: Step,
    options: Mapping[str, Any],
) -> Tensor:
    """Of the step's tokens, packed (total, heads, head_dim)."""
    k_cache, v_cache, *scales = cache
    k_descale, v_descale = scales or (None, None)
    out = flash_attn_with_kvcache(
        *(q, k_cache, v_cache, k, v),
        cache_seqlens=step.cache_seqlens,  # not step._asdict(), which torch 2.4 does not trace
        block_table=step.block_table,
        cu_seqlens_q=step.cu_seqlens_q,
        max_seqlen_q=step.max_seqlen_q,
        k_descale=k_descale,
        v_descale=v_descale,
        **options,
    )
    assert isinstance(out, Tensor)
    return out


def check_step(cache: Any, step: Any, others: Mapping[str, Any]) -> None:
    """`others` are the arguments that do not go with a cache."""
    if not isinstance(step, Step):
        raise TypeError(
            "step must be a Step, what PagedKVCache.append returns, beside cache, got "
            f"{type(step).__name__}"
        )
    if not isinstance(cache, (tuple, list)) or len(cache) not in (2, 4):
        raise TypeError(
            "cache must be (k_cache, v_cache) of this layer, such as PagedKVCache.layers[i], "
            "or (k_cache, v_cache, k_descale, v_descale) of 8 bits, beside step, got "
            f"{type(cache).__name__}"
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

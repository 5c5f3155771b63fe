"""`flash_attn_interface`: the functions of FlashAttention-3, with its argument order.

A KV cache may be of 8-bit floats, with k_descale and v_descale. What kernels do not do raises
NotImplementedError: 8-bit queries and q_descale, descaling without a cache, qv, attention_chunk.
num_splits of the functions without a cache, pack_gqa, sm_margin and scheduler_metadata are about
speed alone, and are not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2 import functional, kvcache
from flash_attn2.merging import merge_attention

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]

Pair = tuple[int, int]

_FLOATS_OF_8_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


def _refuse(attention_chunk: int = 0, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            raise NotImplementedError(f"{name} must be None with flash_attn2.compat, got a tensor")
    if attention_chunk != 0:
        raise NotImplementedError(
            f"attention_chunk must be 0 with flash_attn2.compat, got {attention_chunk}: use "
            "flash_attn2.masks"
        )


def _refuse_8_bits(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype in _FLOATS_OF_8_BITS:
            raise NotImplementedError(
                f"{name} must be float16, bfloat16 or float32 with flash_attn2.compat, got "
                f"{tensor.dtype}: only caches may be of 8 bits"
            )


def _scales(descale: Tensor | None, cache: Tensor, batch: int) -> Tensor | None:
    """Those of a cache: 1 where none are given with 8-bit floats, as FlashAttention-3 has it."""
    if descale is not None or cache.dtype not in _FLOATS_OF_8_BITS:
        return descale
    return torch.ones(batch, cache.shape[-2], device=cache.device)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Pair = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn2.flash_attn_func`; with return_attn_probs (out, lse)."""
    _refuse(attention_chunk, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    _refuse_8_bits(q=q, k=k, v=v)
    return functional.flash_attn_func(
        *(q, k, v, 0.0, softmax_scale, causal, window_size, softcap, None, deterministic),
        return_lse=return_attn_probs,
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Pair = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Of qkv (batch, seqlen, 3, num_heads, head_dim), or (batch, seqlen, num_heads_q + 2 *
    num_heads_kv, head_dim) with num_heads_q; with return_attn_probs (out, lse)."""
    _refuse(attention_chunk, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    _refuse_8_bits(qkv=qkv)
    options = 0.0, softmax_scale, causal, window_size, softcap, None, deterministic
    if qkv.ndim == 4 and num_heads_q is not None:
        num_heads_kv = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = torch.split(qkv, [num_heads_q, num_heads_kv, num_heads_kv], 2)
        return functional.flash_attn_func(q, k, v, *options, return_lse=return_attn_probs)
    return functional.flash_attn_qkvpacked_func(qkv, *options, return_lse=return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Pair = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn2.flash_attn_varlen_func`; with return_attn_probs (out, lse)."""
    _refuse(attention_chunk, qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    _refuse_8_bits(q=q, k=k, v=v)
    return functional.flash_attn_varlen_func(
        *(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        *(0.0, softmax_scale, causal, window_size, softcap, None, deterministic),
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        return_lse=return_attn_probs,
    )


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Pair = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """`flash_attn2.flash_attn_with_kvcache`, whose block_table is the page_table here.

    k_descale and v_descale go with caches of float8_e4m3fn and float8_e5m2, in any of the shapes
    that it takes, FlashAttention-3's (batch, num_heads_kv) among them; None: 1. Queries and new
    rows stay in 16 or 32 bits; rows that are appended are divided by these scales and rounded.
    With return_softmax_lse (out, lse, and two empty tensors for results of splits).
    """
    _refuse(attention_chunk, qv=qv, rotary_seqlens=rotary_seqlens, q_descale=q_descale)
    _refuse_8_bits(q=q, k=k, v=v)
    batch = len(q) if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    result: Any = kvcache.flash_attn_with_kvcache(
        *(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx),
        *(cache_leftpad, page_table, softmax_scale, causal, window_size, softcap),
        *(rotary_interleaved, None, num_splits, return_softmax_lse),
        cu_seqlens_q=cu_seqlens_q,
        max_seqlen_q=max_seqlen_q,
        cu_seqlens_k_new=cu_seqlens_k_new,
        k_descale=_scales(k_descale, k_cache, batch),
        v_descale=_scales(v_descale, v_cache, batch),
    )
    if not return_softmax_lse:
        return result
    out, lse = result
    return out, lse, lse.new_empty(0), lse.new_empty(0)


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """What `merge_attention` does, of out_partial (num_splits, batch, seqlen, num_heads, head_dim)
    and lse_partial (num_splits, batch, seqlen, num_heads), or both without batch.

    Returns out in out_dtype (None: that of out_partial), in `out` if that is given, and lse
    (batch, seqlen, num_heads) in float32.
    """
    lses = lse_partial.transpose(-1, -2)
    merged, lse = merge_attention(list(out_partial), list(lses))
    merged = merged.to(out_partial.dtype if out_dtype is None else out_dtype)
    if out is not None:
        merged = out.copy_(merged)
    return merged, lse.transpose(-1, -2)


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """An empty int32 tensor: kernels here schedule themselves, and take it for nothing."""
    return torch.empty(0, dtype=torch.int32, device=cache_seqlens.device)

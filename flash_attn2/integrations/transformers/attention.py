"""The attention function: what the layers of a model call instead of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2.integrations.transformers.call import Call, make_call
from flash_attn2.integrations.transformers.dense_masks import check_shape, dense_of, meaning_of
from flash_attn2.integrations.transformers.masks import is_one_run
from flash_attn2.integrations.transformers.padding import (
    Segments,
    packing_of,
    segments_of,
    tokens_of,
)

Output = tuple[Tensor, None]

# What some models hand to their attention and the kernels have no word for.
_REFUSED = {
    "attention_bias": "a bias of its scores",
    "alibi": "a bias of its scores",
    "head_mask": "factors on its probabilities",
    "layer_head_mask": "factors on its probabilities",
    "indices": "chosen keys for each query",
    "block_indices": "chosen blocks of keys for each query",
    "sinks": "sinks of another form than s_aux",
}


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    deterministic: bool | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    max_length_k: int | Tensor | None = None,
    block_table: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    **others: Any,
) -> Output:
    """Attention of query, key and value (batch, heads, seqlen, head_dim), as transformers calls it.

    `make_mask` says what attention_mask may be; a mask of 2 dimensions may also be the user's own,
    nonzero where a key counts, and one of 4 dimensions may be of floats, which are added to the
    scores as position_bias is. Returns out (batch, seqlen_q, heads, head_dim) and None, in place of
    the probabilities.
    """
    refuse(module, others)
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    call = make_call(module, query, key, value, dropout, scaling, softcap, s_aux, deterministic)
    call.set_pattern(is_causal, sliding_window)
    if position_bias is not None:
        check_shape(call, "position_bias", position_bias)
        call.add_bias(position_bias)
    if block_table is not None:
        assert k_cache is not None
        assert v_cache is not None
        assert cu_seq_lens_k is not None
        return paged(call, k_cache, v_cache, cu_seq_lens_k, block_table), None
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        if attention_mask is not None and attention_mask.ndim != 1:
            raise ValueError(
                f"attention_mask of {call.name} must be None with cu_seq_lens_q, got shape "
                f"{tuple(attention_mask.shape)}: lengths and masks are two ways to say the same"
            )
        bounds = Segments(
            cu_seq_lens_q.int(), cu_seq_lens_k.int(), None, max_length_q, max_length_k
        )
        return packed(call, bounds), None
    if attention_mask is None and position_ids is not None and call.causal:
        attention_mask = packing_of(call, position_ids)
    return masked(call, attention_mask), None


def masked(call: Call, mask: Tensor | None) -> Tensor:
    """By what the mask is."""
    if mask is None:
        if call.decodes:
            return only_out(flash_attn_with_kvcache(call.q, call.k, call.v, **call.options))
        return dense(call)
    if mask.ndim == 1:
        return packed(call, Segments(mask, mask, None, call.q.shape[1], call.k.shape[1]))
    if mask.ndim == 2:
        return padded(call, mask)
    if mask.ndim == 4:
        return with_dense_mask(call, mask)
    raise ValueError(
        f"attention_mask of {call.name} must have 2 or 4 dimensions, got shape {tuple(mask.shape)}"
    )


def padded(call: Call, mask: Tensor) -> Tensor:
    """Rows of [padding | tokens | padding], with the keys where they lie."""
    if mask.shape[1] > call.k.shape[1]:
        raise ValueError(
            f"attention_mask of {call.name} must have at most as many columns as there are keys, "
            f"{call.k.shape[1]}, got {mask.shape[1]}"
        )
    if mask.dtype != torch.int32:  # not from `make_mask`, which has looked at it
        mask = (mask != 0).to(torch.int32)
        if not torch.compiler.is_compiling() and not bool(is_one_run(mask)):
            return with_dense_mask(call, dense_of(call, mask))
    if call.bias is not None:
        return with_dense_mask(call, dense_of(call, mask))
    call.keep_keys(mask.shape[1])
    if mask.shape[0] != call.q.shape[0]:
        mask = mask.expand(call.q.shape[0], -1)
    if not call.decodes:
        return packed(call, segments_of(call, mask))
    begin, length = tokens_of(mask)
    out = flash_attn_with_kvcache(
        call.q,
        call.k,
        call.v,
        cache_seqlens=begin + length,
        cache_leftpad=begin,
        **call.options,
    )
    return only_out(out)


def packed(call: Call, segments: Segments) -> Tensor:
    """Sequences one after another in the flattened batch."""
    if call.bias is not None:
        raise NotImplementedError(
            f"{call.name} has a bias of its scores, which packed sequences do not take: give each "
            "sequence a row of the batch, with padding"
        )
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    longest_q: Any = q.shape[0] if segments.longest_q is None else segments.longest_q
    longest_k: Any = k.shape[0] if segments.longest_k is None else segments.longest_k
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        segments.cu_q,
        segments.cu_k,
        longest_q,
        longest_k,
        seqused_k=segments.used_k,
        **call.options,
        **call.training,
    )
    return only_out(out).view(call.out_shape)


def with_dense_mask(call: Call, mask: Tensor) -> Tensor:
    """The mask says all, causal and window included."""
    check_shape(call, "attention_mask", mask)
    call.set_pattern(False, None)
    call.keep_keys(mask.shape[3])
    meaning = meaning_of(call, mask)
    if isinstance(meaning, Tensor):
        call.add_bias(meaning)
        return dense(call)
    return dense(call, block_mask=meaning)


def dense(call: Call, **more: Any) -> Tensor:
    """All keys, as far as options say."""
    if call.bias is not None:
        more["bias"] = call.bias
    return only_out(
        flash_attn_func(call.q, call.k, call.v, **call.options, **call.training, **more)
    )


def paged(
    call: Call, k_cache: Tensor, v_cache: Tensor, cu_seq_lens_k: Tensor, block_table: Tensor
) -> Tensor:
    """One new token for each sequence of a cache in pages, which takes it in.

    Pages of keys and values take turns in one tensor, so that the kernels, which do not append to
    caches that overlap, only read them.
    """
    if call.bias is not None:
        raise NotImplementedError(
            f"{call.name} has a bias of its scores, which a cache in pages does not take: use "
            "generate() without continuous batching"
        )
    q, k, v = (x.reshape(-1, 1, *x.shape[2:]) for x in (call.q, call.k, call.v))
    lengths = cu_seq_lens_k.diff()[: q.shape[0]].to(torch.int32)
    # Sequences that fill up a batch have no tokens and no pages: page 0 belongs to nobody.
    last = (lengths - 1).clamp(min=0).long()
    page_size = k_cache.shape[1]
    pages = block_table.gather(1, (last // page_size)[:, None])[:, 0].clamp(min=0).long()
    k_cache[pages, last % page_size] = k[:, 0]
    v_cache[pages, last % page_size] = v[:, 0]
    out = flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths, block_table=block_table, **call.options
    )
    return only_out(out).view(call.out_shape)


def only_out(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Of functions that may return more, and were not asked to."""
    assert isinstance(result, Tensor)
    return result


def refuse(module: torch.nn.Module, others: dict[str, Any]) -> None:
    """Errors for what would otherwise be dropped."""
    for name, meaning in _REFUSED.items():
        if others.get(name) is not None:
            raise NotImplementedError(
                f"{type(module).__name__} gives its attention {name}, {meaning}, which "
                'attn_implementation="flash_attn2" does not take: use "eager" or "sdpa"'
            )
    if others.get("output_attentions"):
        raise ValueError(
            f"output_attentions of {type(module).__name__} must be False with "
            'attn_implementation="flash_attn2", which has no matrix of probabilities: use "eager"'
        )

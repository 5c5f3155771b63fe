"""A program that uses the public functions: what type checkers are told of it is exact.

`test_typing.py` has mypy check it, strictly and with no Any allowed anywhere. A line with an
ignored error is a call that must not pass.
"""

# mypy: disallow-any-expr, disallow-any-decorated

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import assert_type

import flash_attn2
import flash_attn2.compat
from flash_attn2 import (
    apply_rotary_emb,
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
    functional,
    masks,
    merge_attention,
    pad_input,
    unpad_input,
    varlen_attention_probs,
)
from flash_attn2.inference import OutOfPagesError, PagedKVCache, Step, Usage
from flash_attn2.integrations import sdpa, transformers
from flash_attn2.masks import BlockMask, Pattern
from flash_attn2.nn import Attention, RotaryEmbedding, alibi_slopes

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, flag: bool) -> Tensor:
    assert_type(flash_attn_func(q, k, v), Tensor)
    assert_type(flash_attn_func(q, k, v, 0.1, None, True, (-1, 0), 0.0, None, True), Tensor)
    assert_type(flash_attn_func(q, k, v, causal=True, return_lse=False), Tensor)
    assert_type(flash_attn_func(q, k, v, return_lse=True), Pair)
    assert_type(flash_attn_func(q, k, v, 0.1, causal=True, return_attn_probs=True), Triple)
    assert_type(flash_attn_func(q, k, v, return_lse=True, return_attn_probs=True), Triple)
    assert_type(flash_attn_func(q, k, v, return_lse=flag), functional.Attention)
    assert_type(flash_attn_func(q, k, v, return_attn_probs=flag), functional.Attention)
    assert_type(flash_attn_func(q, k, v, block_mask=mask, bias=q, relative_bias=None), Tensor)
    assert_type(flash_attn_func(q, k, v, sink=q, seqused_q=None, return_lse=True), Pair)
    assert_type(flash_attn_kvpacked_func(q, k, softcap=30.0), Tensor)
    assert_type(flash_attn_kvpacked_func(q, k, return_lse=True), Pair)
    assert_type(flash_attn_qkvpacked_func(q, window_size=(5, 0)), Tensor)
    assert_type(flash_attn_qkvpacked_func(q, return_attn_probs=True), Triple)
    flash_attn_func(q, k, v, is_causal=True)  # type: ignore[call-overload]
    flash_attn_func(q, k, v, causal="yes")  # type: ignore[call-overload]
    flash_attn_func(q, k, block_mask=mask)  # type: ignore[call-overload]
    flash_attn_kvpacked_func(q, k, block_mask=q)  # type: ignore[call-overload]
    return flash_attn_func(q, k, v).sum()


def packed(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, flag: bool) -> Tensor:
    assert_type(flash_attn_varlen_func(q, k, v, lengths, lengths), Tensor)
    assert_type(flash_attn_varlen_func(q, k, v, lengths, lengths, 5, 5, 0.0, None, True), Tensor)
    assert_type(flash_attn_varlen_func(q, k, v, lengths, lengths, return_lse=True), Pair)
    assert_type(flash_attn_varlen_func(q, k, v, lengths, lengths, block_table=k, out=q), Tensor)
    assert_type(flash_attn_varlen_func(q, k, v, lengths, lengths, return_attn_probs=True), Triple)
    assert_type(
        flash_attn_varlen_func(q, k, v, lengths, lengths, return_lse=flag), functional.Attention
    )
    assert_type(flash_attn_varlen_kvpacked_func(q, k, lengths, lengths, seqused_k=k), Tensor)
    assert_type(flash_attn_varlen_qkvpacked_func(q, lengths, lengths.max()), Tensor)
    assert_type(flash_attn_varlen_qkvpacked_func(q, lengths, return_lse=True), Pair)
    flash_attn_varlen_func(q, k, v, lengths)  # type: ignore[call-overload]
    flash_attn_varlen_func(q, k, v, lengths, lengths, block_mask=q)  # type: ignore[call-overload]
    return flash_attn_varlen_func(q, k, v, lengths, lengths)


def cached(q: Tensor, k: Tensor, v: Tensor, flag: bool) -> Tensor:
    assert_type(flash_attn_with_kvcache(q, k, v, cache_seqlens=3), Tensor)
    assert_type(flash_attn_with_kvcache(q, k, v, return_softmax_lse=True), Pair)
    assert_type(flash_attn_with_kvcache(q, k, v, return_lse=True, out=q), Pair)
    assert_type(flash_attn_with_kvcache(q, k, v, return_lse=flag), Tensor | Pair)
    flash_attn_with_kvcache(q, k, v, page_table=q)  # type: ignore[call-overload]
    return flash_attn_with_kvcache(q, k, v, k, v, num_splits=1, block_table=q)


def others(q: Tensor, k: Tensor, lengths: Tensor, parts: Sequence[Tensor]) -> None:
    assert_type(attention_probs(q, k, causal=True), Tensor)
    assert_type(varlen_attention_probs(q, k, lengths, lengths, 4, 4), Tensor)
    assert_type(merge_attention(parts, parts), Pair)
    assert_type(apply_rotary_emb(q, q, q, interleaved=True), Tensor)
    assert_type(unpad_input(q, k), tuple[Tensor, Tensor, Tensor, int, Tensor])
    assert_type(pad_input(q, k, 2, 3), Tensor)
    assert_type(flash_attn2.__version__, str)
    assert_type(alibi_slopes(8), Tensor)


def which_keys(ids: Tensor) -> BlockMask:
    pattern = masks.documents(ids) & masks.causal() | ~masks.prefix(3)
    assert_type(pattern, Pattern)
    assert_type(masks.bigbird(), Pattern)
    mask = pattern.build(128, device=ids.device)
    assert_type(mask, BlockMask)
    assert_type(mask.to("cpu"), BlockMask)
    assert_type(mask.density, float)
    assert_type(mask.to_dense(), Tensor)
    return mask


def layer(x: Tensor, mask: BlockMask) -> Tensor:
    rotary = RotaryEmbedding(64)
    assert_type(rotary(x), Tensor)
    assert_type(rotary.tables(128, torch.float32, "cpu"), Pair)
    attention = Attention(512, 8, num_heads_kv=2, causal=True, rotary=rotary)
    assert_type(attention(x, cu_seqlens=x, max_seqlen=5), Tensor)
    assert_type(attention(x, block_mask=mask), Tensor)
    assert_type(Attention.from_multihead(torch.nn.MultiheadAttention(64, 8)), Attention)
    attention(x, mask)  # type: ignore[call-arg, arg-type]
    Attention("512", 8)  # type: ignore[arg-type]
    return attention(x)


def serve(attention: Attention, x: Tensor) -> Tensor:
    cache = PagedKVCache(2, 64, 16, 2, 64, torch.float32, max_batch=4)
    try:
        sequence = cache.allocate()
        assert_type(sequence, int)
        step = cache.append([sequence, cache.fork(sequence)], 3)
    except OutOfPagesError:
        return x
    assert_type(step, Step)
    assert_type(cache.usage(), Usage)
    assert_type(cache.layers[0], Pair)
    return attention(x, cache=cache.layers[0], step=step)


def adapters(q: Tensor) -> None:
    assert_type(transformers.register(), str)
    transformers.unregister()
    assert_type(sdpa.scaled_dot_product_attention(q, q, q, is_causal=True, enable_gqa=True), Tensor)
    sdpa.activate()
    sdpa.deactivate()
    flash_attn2.compat.install()
    flash_attn2.compat.uninstall()

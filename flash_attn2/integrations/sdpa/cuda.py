"""What stands in for PyTorch's flash kernels on CUDA.

Arguments are those of the ops, after the kernel that was there before and the dispatcher's keys.
What stays with that kernel: dropout, whose random numbers are not the same; debug masks; causal
masks of dense queries and keys that are not as many; slopes, lengths of keys, pages and splits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2.integrations.sdpa import calls

_Forward = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]


def forward(
    old: Any,
    keys: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """aten::_scaled_dot_product_flash_attention of (batch, num_heads, seqlen, head_dim) tensors:
    out with the strides of query, lse (batch, num_heads, seqlen_q) contiguous, and the rest."""
    square = query.shape[2] == key.shape[2]
    if return_debug_mask or not calls.takes(query, key, value, dropout_p, is_causal, square, scale):
        more = dropout_p, is_causal, return_debug_mask
        return old(keys, query, key, value, *more, scale=scale)  # type: ignore[no-any-return]
    out, lse = calls.heads_first_forward(query, key, value, is_causal, scale)
    rest = _without_dropout(query)
    return out, lse, None, None, query.shape[2], key.shape[2], *rest


def backward(
    old: Any,
    keys: Any,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> calls.Grads:
    """aten::_scaled_dot_product_flash_attention_backward: gradients with the strides of
    (batch, seqlen, num_heads, head_dim)."""
    square = query.shape[2] == key.shape[2]
    if not calls.takes(query, key, value, dropout_p, is_causal, square, scale):
        return old(  # type: ignore[no-any-return]
            *(keys, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k),
            *(max_q, max_k, dropout_p, is_causal, philox_seed, philox_offset),
            scale=scale,
        )
    results = out, logsumexp
    return calls.heads_first_backward(grad_out, query, key, value, *results, is_causal, scale)


def rows_forward(
    old: Any,
    keys: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> _Forward:
    """aten::_flash_attention_forward of (batch, seqlen, num_heads, head_dim) tensors, or of packed
    (total, num_heads, head_dim) ones, as nested tensors have them."""
    lengths = _lengths(cum_seq_q, cum_seq_k, max_q, max_k)
    square = lengths is not None or query.shape[1] == key.shape[1]
    others = seqused_k, alibi_slopes, block_table, num_splits
    if (
        return_debug_mask
        or any(x is not None for x in others)
        or (lengths is None) != (query.ndim == 4)
        or not calls.takes(query, key, value, dropout_p, is_causal, square, scale)
    ):
        return old(  # type: ignore[no-any-return]
            *(keys, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k),
            *(dropout_p, is_causal, return_debug_mask),
            scale=scale,
            window_size_left=window_size_left,
            window_size_right=window_size_right,
            seqused_k=seqused_k,
            alibi_slopes=alibi_slopes,
            block_table=block_table,
            num_splits=num_splits,
        )
    window = _window(window_size_left, window_size_right)
    options = calls.options_of(is_causal, scale, window)
    out, lse = calls.forward(query, key, value, options, lengths)
    return out, lse, *_without_dropout(query)


def rows_backward(
    old: Any,
    keys: Any,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> calls.Grads:
    """aten::_flash_attention_backward."""
    lengths = _lengths(cum_seq_q, cum_seq_k, max_q, max_k)
    square = lengths is not None or query.shape[1] == key.shape[1]
    if (lengths is None) != (query.ndim == 4) or not calls.takes(
        query, key, value, dropout_p, is_causal, square, scale
    ):
        return old(  # type: ignore[no-any-return]
            *(keys, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k),
            *(max_q, max_k, dropout_p, is_causal, rng_state, unused),
            scale=scale,
            window_size_left=window_size_left,
            window_size_right=window_size_right,
        )
    window = _window(window_size_left, window_size_right)
    options = calls.options_of(is_causal, scale, window)
    return calls.backward(grad_out, query, key, value, out, logsumexp, options, lengths)


def _lengths(
    cum_seq_q: Tensor | None, cum_seq_k: Tensor | None, max_q: int, max_k: int
) -> calls.Lengths | None:
    """None of dense tensors, for which autograd hands on tensors that are undefined or empty."""
    if cum_seq_q is None or cum_seq_k is None or cum_seq_q.numel() == 0:
        return None
    return cum_seq_q, cum_seq_k, max_q, max_k


def _window(left: int | None, right: int | None) -> tuple[int, int]:
    return -1 if left is None else left, -1 if right is None else right


def _without_dropout(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rng_state, what nobody uses, and the debug mask."""
    return (
        torch.zeros(2, dtype=torch.uint64, device=query.device),
        torch.zeros((), dtype=torch.uint64, device=query.device),
        query.new_empty(0),
    )


OVERRIDES: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention": forward,
    "_scaled_dot_product_flash_attention_backward": backward,
    "_flash_attention_forward": rows_forward,
    "_flash_attention_backward": rows_backward,
}

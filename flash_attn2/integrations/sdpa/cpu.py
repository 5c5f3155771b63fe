"""What stands in for PyTorch's flash kernels on the CPU.

Arguments are those of the ops, after the kernel that was there before and the dispatcher's keys.
Masks, causal masks of queries and keys that are not as many, and float64 stay with that kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flash_attn2.integrations.sdpa import calls


def forward(
    old: Any,
    keys: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of (batch, num_heads, seqlen, head_dim) tensors: out with the strides of query,
    lse (batch, num_heads, seqlen_q) with those of (batch, seqlen_q, num_heads)."""
    if not _ours(query, key, value, dropout_p, is_causal, attn_mask, scale):
        return old(  # type: ignore[no-any-return]
            keys, query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    out, lse = calls.heads_first_forward(query, key, value, is_causal, scale)
    return out, lse.transpose(1, 2).contiguous().transpose(1, 2)


def backward(
    old: Any,
    keys: Any,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> calls.Grads:
    """Gradients of query, key and value, with the strides of (batch, seqlen, num_heads, ...)."""
    if not _ours(query, key, value, dropout_p, is_causal, attn_mask, scale):
        return old(  # type: ignore[no-any-return]
            *(keys, grad_out, query, key, value, out, logsumexp, dropout_p, is_causal),
            attn_mask=attn_mask,
            scale=scale,
        )
    results = out, logsumexp
    return calls.heads_first_backward(grad_out, query, key, value, *results, is_causal, scale)


def _ours(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
) -> bool:
    square = query.shape[-2] == key.shape[-2]
    return attn_mask is None and calls.takes(query, key, value, dropout_p, is_causal, square, scale)


OVERRIDES: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": forward,
    "_scaled_dot_product_flash_attention_for_cpu_backward": backward,
}

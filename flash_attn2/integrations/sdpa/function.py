"""`scaled_dot_product_attention` with PyTorch's arguments and layout, by its name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import require_bool, require_tensors
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.problem import MAX_FACTOR, MIN_FACTOR
from flash_attn2.functional import flash_attn_func
from flash_attn2.masks import BlockMask


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch.nn.functional.scaled_dot_product_attention computes, on these kernels.

        query      (..., num_heads, seqlen_q, head_dim)
        key        (..., num_heads_kv, seqlen_k, head_dim)
        value      (..., num_heads_kv, seqlen_k, head_dim_v); head_dim is at most 576 and
                   head_dim_v 512 on the CPU, both 512 on a GPU. All three have as many
                   dimensions, at least 2; leading ones broadcast, and so does one head
        attn_mask  broadcasts to (..., num_heads, seqlen_q, seqlen_k). bool: True where a query sees
                   a key. It is read in every call, to list blocks (`BlockMask.from_dense` and
                   `flash_attn_func` do so once for many calls); where values are not known, as
                   while torch.compile traces, it is added to the scores. float32 or of query's
                   dtype: added to the scores, with a gradient
        dropout_p  applied whenever above 0, as in PyTorch's function
        is_causal  query i sees keys 0 to i (aligned to the top left); not beside attn_mask
        scale      on the scores, 0 or from 2^-100 to 2^100; None: 1 / sqrt(head_dim)
        enable_gqa whether num_heads may be any multiple of num_heads_kv

    Returns (..., num_heads, seqlen_q, head_dim_v), a transposed view of what lies in memory with
    heads after rows. A query that sees no key gives 0. Differentiable in query, key, value and a
    mask of floats. Raises TypeError and ValueError, which name the argument.
    """
    require_tensors(("query", "key", "value", "?attn_mask"), query, key, value, attn_mask)
    require_bool("is_causal", is_causal)
    require_bool("enable_gqa", enable_gqa)
    _check_scale(scale)
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask must be None with is_causal=True: put both into one mask")
    lead = _leading(query, key, value)
    q, k, v = (_rows(x, lead) for x in (query, key, value))
    q, k, v = _with_heads(q, k, v, bool(enable_gqa))
    options: dict[str, Any] = {"dropout_p": dropout_p, "softmax_scale": scale}
    if is_causal:
        k, v = k[:, : q.shape[1]], v[:, : q.shape[1]]
        # Of the keys that are left, query i sees those up to its own: on or left of a diagonal that
        # lies further to the right where queries are more.
        options["window_size"] = (-1, q.shape[1] - k.shape[1])
    if attn_mask is not None and q.shape[1] and k.shape[1]:
        options.update(_mask_options(_as_4d(attn_mask, lead, q, k), q, k))
    out: Any = flash_attn_func(q, k, v, **options)
    out = out.transpose(1, 2)
    return out.reshape((*lead, *out.shape[1:])[-query.ndim :])  # type: ignore[no-any-return]


def _check_scale(scale: Any) -> None:
    if scale is None or isinstance(scale, torch.SymFloat):
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    if scale != 0 and not MIN_FACTOR <= scale <= MAX_FACTOR:
        raise ValueError(
            f"scale must be 0 or from {MIN_FACTOR:.4g} to {MAX_FACTOR:.4g} (2^-100 to 2^100), got "
            f"{scale}"
        )


def _leading(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Dimensions before the heads."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim < 2 or x.ndim != query.ndim:
            raise ValueError(
                f"{name} must be (..., num_heads, seqlen, head_dim) with as many dimensions as "
                f"query, at least 2, got shapes {tuple(query.shape)} and {tuple(x.shape)}"
            )
    leads = [x.shape[:-3] for x in (query, key, value)]
    try:
        return tuple(torch.broadcast_shapes(*leads))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            "key and value must have leading dimensions that broadcast with those of query, got "
            f"{', '.join(str(tuple(x)) for x in leads)}"
        ) from None


def _rows(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """(batch, seqlen, heads, width)."""
    if x.ndim < 4:
        x = x[(None,) * (4 - x.ndim)]
    else:
        if x.shape[:-3] != lead:
            x = x.expand(*lead, -1, -1, -1)
        if len(lead) > 1:
            x = x.reshape(math.prod(lead), *x.shape[-3:])
    return x.transpose(1, 2)


def _with_heads(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of numbers that the kernels take."""
    heads = [x.shape[2] for x in (q, k, v)]
    most = max(heads)
    if heads[1] != heads[2]:
        if min(heads[1:]) != 1:
            raise ValueError(f"value must have the heads of key, {heads[1]}, got {heads[2]}")
        k, v = (x.expand(-1, -1, max(heads[1:]), -1) for x in (k, v))
    num_heads, num_heads_kv = heads[0], k.shape[2]
    if num_heads == 1:
        q = q.expand(-1, -1, most, -1)
    elif num_heads_kv not in (1, num_heads) and not (grouped and num_heads % num_heads_kv == 0):
        allowed = "a divisor of" if grouped else "without enable_gqa, as many as"
        raise ValueError(
            f"key and value must have heads that are {allowed} those of query, {num_heads}, got "
            f"{num_heads_kv}"
        )
    return q, k, v


def _as_4d(mask: Tensor, lead: tuple[int, ...], q: Tensor, k: Tensor) -> Tensor:
    """The mask as (batch or 1, num_heads or 1, seqlen_q or 1, seqlen_k or 1)."""
    full = (*lead, q.shape[2], q.shape[1], k.shape[1])
    sizes = (1,) * max(0, 4 - mask.ndim) + tuple(mask.shape)
    whole = (1, *full)[-len(sizes) :]
    fits = len(sizes) == len(whole) and all(
        size in (1, most) for size, most in zip(sizes, whole, strict=True)
    )
    if not fits:
        raise ValueError(
            "attn_mask must broadcast to (..., num_heads, seqlen_q, seqlen_k), "
            f"{full}, got shape {tuple(mask.shape)}"
        )
    if len(lead) > 1 and math.prod(sizes[:-3]) != 1:
        mask = mask.expand(*lead, *sizes[-3:])
    return mask.reshape(-1, *sizes[-3:])


def _mask_options(mask: Tensor, q: Tensor, k: Tensor) -> dict[str, Any]:
    if mask.dtype != torch.bool:
        if mask.dtype not in (q.dtype, torch.float32):
            raise TypeError(
                f"attn_mask must be torch.bool, torch.float32 or of query's dtype, {q.dtype}, got "
                f"{mask.dtype}"
            )
        return {"bias": mask}
    if not (ordinary() and is_ordinary(mask)):
        zero = torch.zeros((), dtype=q.dtype, device=mask.device)
        return {"bias": torch.where(mask, zero, -torch.inf)}
    return {"block_mask": BlockMask.from_dense(mask.expand(-1, -1, q.shape[1], k.shape[1]))}

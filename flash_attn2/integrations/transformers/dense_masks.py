"""Masks of 4 dimensions, as block masks."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flash_attn2.integrations.transformers.call import Call
from flash_attn2.masks import BlockMask

# The layers of a model get the same tensor: what was made of it, for which lengths and contents.
_made: MutableMapping[Tensor, tuple[Any, BlockMask]] = WeakTensorKeyDictionary()


def dense_of(call: Call, tokens: Tensor) -> Tensor:
    """bool (batch, 1, seqlen_q, seqlen_k): the tokens, int32 (batch, seqlen_k), of a mask with
    holes, and what the call says of causal and window."""
    seqlen_q, seqlen_k = call.q.shape[1], tokens.shape[1]
    key = torch.arange(seqlen_k, device=tokens.device)
    query = torch.arange(seqlen_q, device=tokens.device)[:, None] + seqlen_k - seqlen_q
    visible = torch.ones((seqlen_q, seqlen_k), dtype=torch.bool, device=tokens.device)
    if call.causal:
        visible = visible & (key <= query)
    if call.window is not None:
        visible = visible & ((key - query).abs() < call.window)
    return visible & (tokens > 0)[:, None, None, :]


def block_mask_of(call: Call, mask: Tensor) -> BlockMask:
    """Of a mask of bools, or of floats that are 0 where a key counts. Keys past its last column do
    not count.

    ValueError for a mask of another shape, NotImplementedError for floats that are a bias.
    """
    batch, seqlen_q, num_heads, _ = call.q.shape
    seqlen_k = min(call.k.shape[1], mask.shape[3])
    for size, allowed in zip(mask.shape, ((1, batch), (1, num_heads), (1, seqlen_q)), strict=False):
        if size not in allowed:
            raise ValueError(
                f"attention_mask of {call.name} must be (batch or 1, heads or 1, seqlen_q or 1, "
                f"seqlen_k), with batch {batch}, heads {num_heads} and seqlen_q {seqlen_q}, got "
                f"shape {tuple(mask.shape)}"
            )
    key = seqlen_q, seqlen_k, 0 if mask.is_inference() else mask._version
    made = _made.get(mask)
    if made is None or made[0] != key:
        visible = _visible(call, mask[..., :seqlen_k]).expand(-1, -1, seqlen_q, -1)
        made = _made[mask] = key, BlockMask.from_dense(visible)
    return made[1]


def _visible(call: Call, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return mask != 0
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not bool(((mask == 0) | hidden).all()):
        raise NotImplementedError(
            f"attention_mask of {call.name} must be 0, or the lowest number of its dtype, got "
            'others, which are a bias: use attn_implementation="eager" or "sdpa"'
        )
    return ~hidden

"""Masks of 4 dimensions, as block masks."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2.integrations.transformers.call import Call
from flash_attn2.integrations.transformers.memory import remembered
from flash_attn2.masks import BlockMask


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

    def block_mask() -> BlockMask:
        visible = _visible(call, mask[..., :seqlen_k])
        return BlockMask.from_dense(visible.expand(-1, -1, seqlen_q, -1))

    return remembered(mask, seqlen_q, seqlen_k, make=block_mask)


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

"""Masks of 4 dimensions, as block masks."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2.integrations.transformers.call import Call
from flash_attn2.integrations.transformers.memory import remembered
from flash_attn2.masks import BlockMask


def dense_of(call: Call, labels: Tensor) -> Tensor:
    """bool (batch, 1, seqlen_q, seqlen_k): the tokens that a mask of 2 dimensions labels, holes or
    not, and what the call says of causal and window."""
    seqlen_q, seqlen_k = call.q.shape[1], labels.shape[1]
    key = torch.arange(seqlen_k, device=labels.device)
    filled = (labels >= 0).sum(1)[:, None, None, None]
    query = torch.arange(seqlen_q, device=labels.device)[:, None] + filled - seqlen_q
    visible = (labels > 0)[:, None, None, :]
    if call.causal:
        visible = visible & (key <= query)
    if call.window is not None:
        visible = visible & ((key - query).abs() < call.window)
    return visible


def check_shape(call: Call, name: str, tensor: Tensor) -> None:
    """ValueError for a mask, or bias, of this name that does not go with the tensors of a call."""
    batch, seqlen_q, num_heads, _ = call.q.shape
    sizes = zip(tensor.shape, (batch, num_heads, seqlen_q), strict=False)
    if tensor.ndim != 4 or any(size not in (1, full) for size, full in sizes):
        raise ValueError(
            f"{name} of {call.name} must be (batch or 1, heads or 1, seqlen_q or 1, seqlen_k), "
            f"with batch {batch}, heads {num_heads} and seqlen_q {seqlen_q}, got shape "
            f"{tuple(tensor.shape)}"
        )


def meaning_of(call: Call, mask: Tensor) -> BlockMask | Tensor:
    """A block mask, of bools or of floats that are 0 where a key counts and the lowest number where
    it does not; else a bias. Keys past its last column do not count."""
    seqlen_q, seqlen_k = call.q.shape[1], min(call.k.shape[1], mask.shape[3])
    mask_of_keys = mask[..., :seqlen_k]
    if torch.compiler.is_compiling():  # a list of blocks has a length that is not known
        return bias_of(mask_of_keys, call.q.dtype)

    def make() -> BlockMask | Tensor:
        visible = _visible(mask_of_keys)
        if visible is None:
            return bias_of(mask_of_keys, call.q.dtype)
        return BlockMask.from_dense(visible.expand(-1, -1, seqlen_q, -1))

    if mask.requires_grad:
        return make()
    return remembered(mask, seqlen_q, seqlen_k, call.q.dtype, make=make)


def _visible(mask: Tensor) -> Tensor | None:
    """Where keys count; None where floats say more than that."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return mask != 0
    hidden = _is_hidden(mask)
    return ~hidden if bool(((mask == 0) | hidden).all()) else None


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where a key does not count."""
    if not mask.is_floating_point():
        zeros = torch.zeros((), dtype=dtype, device=mask.device)
        return torch.where(mask != 0, zeros, -torch.inf)
    return torch.where(_is_hidden(mask), -torch.inf, mask)


def _is_hidden(mask: Tensor) -> Tensor:
    """The lowest number of the dtype, and what it becomes when something is added to it."""
    return mask <= torch.finfo(mask.dtype).min / 2

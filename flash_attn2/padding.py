"""Between padded (batch, seqlen, ...) and packed (total, ...) tensors.

Compatible with `flash_attn.bert_padding` of flash-attn 2.8. All three functions are
differentiable; `unpad_input` waits for the device, since the shape of its result depends on data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import Tensor


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` (n,) of x (rows, ...): (n, ...)."""
    return x.index_select(0, indices)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Drop the padding of (batch, seqlen, ...).

    attention_mask (batch, seqlen), bool or int, is nonzero at tokens; unused_mask likewise, at
    rows that are kept in the packed tensor without being tokens. Returns

        packed (total, ...), the rows that either mask selects;
        indices (total,), int64, their positions in the flattened input, for `pad_input`;
        cu_seqlens (batch + 1,), int32; max_seqlen, int;
        seqused (batch,), int32, the number of tokens of each sequence.
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"{name} must have shape (batch, seqlen) = {tuple(hidden_states.shape[:2])}, "
                f"got {tuple(mask.shape)}"
            )
    tokens = attention_mask != 0
    kept = tokens if unused_mask is None else tokens | (unused_mask != 0)
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    max_seqlen = int(lengths.max()) if lengths.numel() else 0
    packed = index_first_axis(rearrange(hidden_states, "b s ... -> (b s) ..."), indices)
    return packed, indices, cu_seqlens, max_seqlen, tokens.sum(-1, dtype=torch.int32)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: (total, ...) -> (batch, seqlen, ...), zeros as padding."""
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    padded = padded.index_copy(0, indices, hidden_states)
    return rearrange(padded, "(b s) ... -> b s ...", b=batch, s=seqlen)

"""Rows of [padding | tokens | padding] as sequences of the flattened batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flash_attn2.integrations.transformers.call import Call
from flash_attn2.integrations.transformers.masks import bounds_of
from flash_attn2.integrations.transformers.memory import remembered


class Segments(NamedTuple):
    """Sequences of `flash_attn_varlen_func`."""

    cu_q: Tensor
    cu_k: Tensor
    used_k: Tensor | None
    longest_q: int | Tensor | None  # None: not known
    longest_k: int | Tensor | None


def tokens_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of each row begin, and how many they are: int32 (batch,)."""
    token = labels > 0
    return token.int().argmax(1).to(torch.int32), token.sum(1, dtype=torch.int32)


def packing_of(call: Call, position_ids: Tensor) -> Tensor | None:
    """Bounds of the sequences of a packed batch, whose positions start anew; None where there is
    nothing to tell apart.

    `make_mask` has no part in it where there is a cache, as there is unless a model is told
    otherwise, and where the model does not show it the positions.
    """
    batch, seqlen, *_ = call.q.shape
    if (
        seqlen == 1
        or seqlen != call.k.shape[1]
        or position_ids.ndim != 2
        or position_ids.shape[1] != seqlen
    ):
        return None

    def bounds() -> Tensor | None:
        sequences = (position_ids.diff(dim=1) != 1).cumsum(1)
        if not torch.compiler.is_compiling() and not bool(sequences.any()):
            return None
        return bounds_of(pad(sequences, (1, 0)).expand(batch, -1))

    if torch.compiler.is_compiling():
        return bounds()
    return remembered(position_ids, "packing", batch, make=bounds)


def segments_of(call: Call, labels: Tensor) -> Segments:
    """Sequences that show each query the keys with a label above 0 of its row, as far as the mask
    of the call does."""
    seqlen_q, seqlen_k = call.q.shape[1], labels.shape[1]
    begin, length = tokens_of(labels)
    zero = torch.zeros_like(begin)
    if not call.causal and call.window is None:
        # All queries see all tokens: in front of them a sequence without queries takes the padding.
        cu_q = _bounds(seqlen_q, zero, zero)
        cu_k = _bounds(seqlen_k, zero, begin)
        used = torch.stack((zero, length), 1).flatten()
        return Segments(cu_q, cu_k, used, seqlen_q, seqlen_k)
    # Queries are the last of the places that are filled. Those in the padding see nothing.
    filled = (labels >= 0).sum(1, dtype=torch.int32)
    first = filled - seqlen_q
    begin_q = (begin - first).clamp(0, seqlen_q)
    end_q = (begin + length - first).clamp(0, seqlen_q)
    cu_q = _bounds(seqlen_q, zero, begin_q, end_q)
    cu_k = _bounds(seqlen_k, zero, begin, begin + length)
    used = torch.stack((zero, length, zero), 1).flatten()
    return Segments(cu_q, cu_k, used, seqlen_q, seqlen_k)


def _bounds(seqlen: int, *begins: Tensor) -> Tensor:
    """cu_seqlens of rows of so many places, each cut where these (batch,) say."""
    batch = begins[0].shape[0]
    rows = torch.arange(batch, dtype=torch.int32, device=begins[0].device) * seqlen
    cuts = torch.stack(begins, 1) + rows[:, None]
    return pad(cuts.flatten(), (0, 1), value=batch * seqlen).to(torch.int32)

"""What patterns mean, in plain dense tensors."""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = [(1, 1), (63, 63), (64, 64), (65, 65), (200, 200), (65, 200), (200, 65), (130, 64)]


def indices(seqlen_q: int, seqlen_k: int) -> tuple[Tensor, Tensor]:
    """Query and key of each pair."""
    return torch.arange(seqlen_q)[:, None], torch.arange(seqlen_k)[None, :]


def diagonals(seqlen_q: int, seqlen_k: int) -> Tensor:
    """(seqlen_q, 1): the key on whose diagonal each query stands."""
    return torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q


def window(seqlen_q: int, seqlen_k: int, left: int, right: int) -> Tensor:
    distance = indices(seqlen_q, seqlen_k)[1] - diagonals(seqlen_q, seqlen_k)
    visible = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if left >= 0:
        visible &= distance >= -left
    if right >= 0:
        visible &= distance <= right
    return visible


def prefix(seqlen_q: int, seqlen_k: int, n: int) -> Tensor:
    return (indices(seqlen_q, seqlen_k)[1] < min(n, 2**40)).expand(seqlen_q, seqlen_k)


def of_queries(tokens: Tensor, seqlen_q: int, seqlen_k: int, otherwise: int) -> Tensor:
    """(seqlen_q, 1): what a tensor (seqlen_k,) says of the tokens that are queries."""
    at = diagonals(seqlen_q, seqlen_k)
    if seqlen_k == 0:
        return torch.full_like(at, otherwise, dtype=tokens.dtype)
    return torch.where(at >= 0, tokens[at.clamp(min=0)], otherwise)


def global_tokens(seqlen_q: int, seqlen_k: int, tokens: Tensor) -> Tensor:
    return tokens[None] | of_queries(tokens, seqlen_q, seqlen_k, 0).bool()


def documents(seqlen_q: int, seqlen_k: int, ids: Tensor) -> Tensor:
    return (of_queries(ids, seqlen_q, seqlen_k, -1) == ids[None]) & (ids[None] >= 0)


def blocks(seqlen_q: int, seqlen_k: int, table: Tensor, block_q: int, block_k: int) -> Tensor:
    """(..., rows, cols) -> (..., seqlen_q, seqlen_k)."""
    rows, cols = table.repeat_interleave(block_q, -2), slice(None, seqlen_k)
    return rows.repeat_interleave(block_k, -1)[..., :seqlen_q, cols]

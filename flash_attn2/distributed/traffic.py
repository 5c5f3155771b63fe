"""What ranks send to each other for one attention, to the byte.

Sent once to each rank that needs it: what a rank keeps for itself does not count, nor do the 16
bytes of dropout's state and the hash of a first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attn2.distributed.head_shares import HeadShare

LSE_BYTES = 4


class Elements(NamedTuple):
    """What a call is made of, beside rows and heads."""

    batch: int
    head_dim: int
    head_dim_v: int
    itemsize: int

    @property
    def partial(self) -> int:
        """Bytes of an element of gradients that are still summed up: float32, or float64."""
        return max(4, self.itemsize)

    @property
    def row(self) -> int:
        """Bytes of a row of queries or keys, of a head and over the batch."""
        return self.batch * self.head_dim * self.itemsize

    @property
    def row_v(self) -> int:
        """Likewise of values or results."""
        return self.batch * self.head_dim_v * self.itemsize

    @property
    def partial_kv(self) -> int:
        """Of sums of gradients of keys and values."""
        return self.batch * (self.head_dim + self.head_dim_v) * self.partial


class Traffic(NamedTuple):
    """Bytes that each rank sends, int64 (ranks,)."""

    exchange_forward: Tensor
    """Between rows and heads."""
    exchange_backward: Tensor
    outer_forward: Tensor
    """Keys and values, around the ring or gathered."""
    outer_backward: Tensor

    @property
    def forward(self) -> Tensor:
        return self.exchange_forward + self.outer_forward

    @property
    def backward(self) -> Tensor:
        return self.exchange_backward + self.outer_backward


def traffic(
    scheme: str,
    rows: Tensor,
    shares: Sequence[HeadShare],
    num_heads: int,
    size: Elements,
    with_lse: bool,
    gathered: tuple[Tensor, Tensor] | None,
) -> Traffic:
    """Of (outer ranks * shares) ranks with so many rows each, those that share heads next to each
    other. `gathered`: rows that the outer ranks of a gather send and get."""
    of_q = torch.tensor([share.size for share in shares])
    of_kv = torch.tensor([len(share.different_kv) for share in shares])
    rows = rows.view(-1, len(shares))
    exchange = _exchange(rows, of_q, of_kv, num_heads, size, with_lse)
    outer = _outer(scheme, rows.sum(1, keepdim=True), of_kv, size, gathered)
    return Traffic(*(x.flatten() for x in (*exchange, *outer)))


def _exchange(
    rows: Tensor, of_q: Tensor, of_kv: Tensor, num_heads: int, size: Elements, with_lse: bool
) -> tuple[Tensor, Tensor]:
    """Own rows of the heads of others there, other rows of the own heads back."""
    others = rows.sum(1, keepdim=True) - rows
    kv_of_others = of_kv.sum() - of_kv
    of_others = num_heads - of_q
    kv = size.row + size.row_v
    lse = LSE_BYTES * size.batch if with_lse else 0
    forward = rows * (of_others * size.row + kv_of_others * kv)
    forward = forward + others * of_q * (size.row_v + lse)
    backward = rows * of_others * (size.row_v + lse)
    backward = backward + others * (of_q * size.row + of_kv * kv)
    return forward, backward


def _outer(
    scheme: str,
    rows: Tensor,
    of_kv: Tensor,
    size: Elements,
    gathered: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """`rows` (outer ranks, 1). Backward, keys and values come by again, and sums of their
    gradients go to those who have them."""
    count, total = rows.shape[0], rows.sum()
    kv, partial = of_kv * (size.row + size.row_v), of_kv * size.partial_kv
    if gathered is not None:
        sent, got = (x[:, None] for x in gathered)
        return sent * kv, sent * kv + got * partial
    if scheme == "ring" and count > 1:  # everything but what the next one has goes on to it
        keys = (total - rows.roll(-1, 0)) * kv
        return keys, keys + (total - rows) * partial
    return 0 * rows * kv, 0 * rows * kv

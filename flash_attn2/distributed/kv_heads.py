"""KV heads of a share as often as its call needs them: several times where it ends in the midst of
a group."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2.distributed.exchange import joined
from flash_attn2.distributed.head_shares import HeadShare


def expanded(share: HeadShare, x: Tensor) -> Tensor:
    """(batch, rows, different heads, size) -> (batch, rows, heads of the call, size)."""
    if share.kv == share.different_kv:
        return x
    return x[:, :, [share.different_kv.index(head) for head in share.kv]]


def reduced(share: HeadShare, grad: Tensor) -> Tensor:
    """The gradient of `expanded`, summed in the order of heads."""
    if share.kv == share.different_kv:
        return grad
    table = tuple((share.different_kv.index(head),) for head in share.kv)
    return joined(torch.split(grad, 1, 2), table, len(share.different_kv), dim=2)

"""Checks of what a call says of dropout beside its probability: a shard's place, and a state."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2._impl.problem import NO_SHARD, Problem

_MAX_INT32 = 2**31 - 1


def check_shard(p: Problem, batch: int) -> None:
    """Where a shard lies in the whole problem, and a state of dropout that was given."""
    drop_prob, rng_state = p.options.dropout
    if rng_state is not None and drop_prob > 0:
        _check_rng_state(rng_state, p.q.device)
    if p[-3:] == NO_SHARD:
        return
    batch_start, head_start, num_heads_total = p[-3:]
    num_heads = p.q.shape[-2]
    if not 0 <= batch_start <= _MAX_INT32 - batch:
        raise ValueError(
            f"batch_start must be from 0 to {_MAX_INT32} - {batch} sequences, got {batch_start}"
        )
    total = num_heads if num_heads_total is None else num_heads_total
    if not (0 <= head_start <= total - num_heads and total <= _MAX_INT32):
        raise ValueError(
            "head_start and num_heads_total must say where the heads of q lie among all: "
            f"{num_heads} heads from head_start {head_start} on do not lie within {total}"
        )


def _check_rng_state(rng_state: Tensor, device: torch.device) -> None:
    if rng_state.shape != (2,):
        raise ValueError(f"rng_state must have shape (2,), got {tuple(rng_state.shape)}")
    if rng_state.dtype != torch.int64:
        raise TypeError(f"rng_state must be torch.int64, got {rng_state.dtype}")
    if rng_state.device != device:
        raise ValueError(f"rng_state must be on the device of q, {device}, got {rng_state.device}")

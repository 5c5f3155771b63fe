"""Rows of a whole sequence -> those of a rank, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int, require_tensor
from flash_attn2.distributed.exchange import all_gathered

if TYPE_CHECKING:
    from flash_attn2.distributed.plan import ContextPlan


def positions(ranges: list[tuple[int, int]]) -> Tensor:
    """int64: the rows of ranges, one after the other."""
    parts = [torch.arange(start, end, device="cpu") for start, end in ranges]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device="cpu")


def shard(plan: ContextPlan, x: Tensor, dim: int) -> Tensor:
    """`ContextPlan.shard`."""
    dim = _checked(x, dim)
    if x.shape[dim] != plan.seqlen:
        raise ValueError(
            f"x must have the {plan.seqlen} rows of the sequence in dimension {dim}, got "
            f"{x.shape[dim]}"
        )
    own = plan.ranges.of(plan.rank)
    if not own:
        return x.narrow(dim, 0, 0)
    parts = [x.narrow(dim, start, end - start) for start, end in own]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def unshard(plan: ContextPlan, x: Tensor, dim: int) -> Tensor:
    """`ContextPlan.unshard`."""
    dim = _checked(x, dim)
    ranks = plan.ranks
    if not ranks.groups:
        raise ValueError("this plan is made of numbers: unshard needs one of a group or a mesh")
    rows = plan.rows
    if x.shape[dim] != rows[plan.rank]:
        raise ValueError(
            f"x must have the {rows[plan.rank]} rows of rank {plan.rank} in dimension {dim}, got "
            f"{x.shape[dim]}"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("unshard has no gradient: pass x.detach(), or use torch.no_grad")
    parts = _gathered(plan, x.detach().movedim(dim, 0).contiguous(), rows)
    whole = parts[0].new_empty((plan.seqlen, *parts[0].shape[1:]))
    for rank, part in enumerate(parts):
        before = 0
        for start, end in plan.ranges.of(rank):
            whole[start:end] = part[before : before + end - start]
            before += end - start
    return whole.movedim(0, dim).contiguous()


def _checked(x: Any, dim: Any) -> int:
    require_tensor("x", x)
    index = as_int("dim", dim)
    if not -x.ndim <= index < x.ndim:
        raise IndexError(f"dim must be from {-x.ndim} to {x.ndim - 1}, got {index}")
    return index + x.ndim if index < 0 else index


def _gathered(plan: ContextPlan, own: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """The rows of all ranks, along the first dimension. Ranks pad theirs to the most of any."""
    ranks = plan.ranks
    if ranks.size == 1:
        return [own]
    padded = own.new_zeros((max(rows), *own.shape[1:]))
    padded[: own.shape[0]] = own
    parts = [padded]
    for group in ranks.groups:
        received = all_gathered(group, torch.stack(parts))
        parts = [part for several in received for part in several]
    return [part[:count] for part, count in zip(parts, rows, strict=True)]

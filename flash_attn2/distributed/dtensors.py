"""`context_attention` with DTensors: which rows of theirs a rank has, and results like them.

A DTensor sharded along its sequence holds the plan's rows of each rank, one rank after the other.
How many each has is the plan's choice, where DTensor's own would be equal chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from flash_attn2._impl.dtensors import is_dtensor
from flash_attn2._impl.problem import Options

if TYPE_CHECKING:
    from flash_attn2.distributed.plan import ContextPlan


class Spread(NamedTuple):
    """A mesh whose ranks are those of the plan, in its order."""

    mesh: Any
    plan: ContextPlan

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """The DTensor of which x is the rank's part, its rows along `dim`."""
        if torch.compiler.is_compiling():
            self._require_chunks()
            return _whole(x, dim, self)
        found: Tensor = _Moved.apply(x, dim, self, _whole, _rows)  # type: ignore[no-untyped-call]
        return found

    def rows(self, x: Tensor, dim: int) -> Tensor:
        """The rank's part of such a DTensor."""
        if torch.compiler.is_compiling():
            self._require_chunks()
            return x.to_local()  # type: ignore[attr-defined,no-any-return]
        found: Tensor = _Moved.apply(x, dim, self, _rows, _whole)  # type: ignore[no-untyped-call]
        return found

    def _require_chunks(self) -> None:
        """NotImplementedError where rows are not DTensor's chunks, which is all that compilers know
        how to differentiate."""
        plan = self.plan
        size = -(-plan.seqlen // plan.size)
        if any(n != max(min(size, plan.seqlen - i * size), 0) for i, n in enumerate(plan.rows)):
            raise NotImplementedError(
                f"compiled calls take DTensors of chunks of {size} rows, as DTensor makes them, "
                f"got those of a plan with {plan.rows}: pass their local rows, or choose a seqlen "
                "that divides"
            )


_Move = Callable[[Tensor, int, Spread], Tensor]


def spread_of(q: Any, k: Any, v: Any, plan: ContextPlan) -> Spread | None:
    """None where none is a DTensor. TypeError where only some are; ValueError where they do not lie
    on the plan's ranks, or have other rows than the plan's."""
    given = {"q": q, "k": k, "v": v}
    if not any(is_dtensor(x) for x in given.values()):
        return None
    for name, x in given.items():
        if not is_dtensor(x):
            raise TypeError(
                f"q, k and v must all be DTensors, or none: {name} is a {type(x).__name__}"
            )
        _require_mesh(name, x.device_mesh, plan)
        _require_rows(name, x, plan)
    return Spread(q.device_mesh, plan)


def _require_mesh(name: str, mesh: Any, plan: ContextPlan) -> None:
    ranks = plan.ranks
    ours = [ranks.group] if ranks.group is not None else [ranks.outer_group, ranks.heads_group]
    theirs = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    members = [[dist.get_process_group_ranks(group) for group in x] for x in (ours, theirs)]
    if members[0] != members[1]:
        raise ValueError(
            f"{name} must be a DTensor on the plan's mesh, of ranks {members[0]} in its dimensions "
            f"as this rank sees them, got one on {mesh}, of {members[1]}"
        )


def _require_rows(name: str, x: Any, plan: ContextPlan) -> None:
    from torch.distributed.tensor import Shard

    if any(type(p) is not Shard or p.dim % x.ndim != 1 for p in x.placements):
        raise ValueError(
            f"{name} must be sharded along its sequence, Shard(1), by all dimensions of its mesh, "
            f"got {tuple(x.placements)}"
        )
    if x.ndim == 4 and x.shape[1] != plan.seqlen:
        raise ValueError(
            f"{name} must have the {plan.seqlen} rows of the plan's sequence, got shape "
            f"{tuple(x.shape)}"
        )


def local_options(options: Options, spread: Spread | None) -> Options:
    """With what a rank has of the options that are DTensors: those that are whole on each have the
    same gradient on each. TypeError where q is none, ValueError for other meshes and placements."""
    score_mod = options.score_mod
    bias = score_mod.bias
    rows = None if bias is None or bias.ndim < 2 else bias.ndim - 2
    return options._replace(
        sink=_local("sink", options.sink, spread),
        score_mod=score_mod._replace(
            alibi_slopes=_local("alibi_slopes", score_mod.alibi_slopes, spread),
            bias=_local("bias", bias, spread, rows),
            relative_bias=_local("relative_bias", score_mod.relative_bias, spread),
        ),
    )


def _local(name: str, x: Any, spread: Spread | None, rows: int | None = None) -> Tensor | None:
    """`rows`: the dimension along which it may be sharded as q is."""
    if x is None or not is_dtensor(x):
        return x  # type: ignore[no-any-return]
    from torch.distributed.tensor import Replicate, Shard

    if spread is None:
        raise TypeError(f"{name} must be a tensor where q is one, got a DTensor")
    _require_mesh(name, x.device_mesh, spread.plan)
    placements = {Shard(p.dim % x.ndim) if type(p) is Shard else p for p in x.placements}
    if placements == {Replicate()}:
        whole: Tensor = x.to_local(grad_placements=x.placements)
        return whole
    if rows is not None and placements == {Shard(rows)}:
        return spread.rows(x, rows)
    allowed = "Replicate()" if rows is None else f"Replicate() or Shard({rows})"
    raise ValueError(
        f"{name} must have {allowed} in all dimensions of its mesh, got {tuple(x.placements)}"
    )


# DTensor.from_local and to_local do this for equal chunks alone: their gradients take a whole apart
# by those, and put one together from them.


class _Moved(torch.autograd.Function):
    """`there` of x, whose gradient comes `back`: one is _whole and the other _rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, spread: Spread, there: _Move, back: _Move) -> Tensor:
        ctx.dim, ctx.spread, ctx.back = dim, spread, back
        return there(x, dim, spread)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return ctx.back(grad, ctx.dim, ctx.spread), None, None, None, None


def _whole(x: Tensor, dim: int, spread: Spread) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard

    shape = list(x.shape)
    shape[dim] = spread.plan.seqlen
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        *(x.contiguous(), spread.mesh, [Shard(dim)] * spread.mesh.ndim),
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )


def _rows(x: Any, dim: int, spread: Spread) -> Tensor:
    """Also of what is whole on each rank, or a sum over ranks."""
    from torch.distributed.tensor import Replicate, Shard

    mesh, plan = spread
    if all(p == Shard(dim) for p in x.placements):
        own: Tensor = x.to_local()
        return own.view_as(own)
    whole: Tensor = x.redistribute(mesh, [Replicate()] * mesh.ndim).to_local()
    return whole.narrow(dim, sum(plan.rows[: plan.rank]), plan.rows[plan.rank])

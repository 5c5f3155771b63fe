"""Attention of a sequence that is divided among ranks."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from flash_attn2._impl import checks
from flash_attn2._impl.arguments import named_only, refuse_keywords, require_bool, require_tensors
from flash_attn2._impl.autograd import to_autocast_dtype
from flash_attn2._impl.options import make_options
from flash_attn2._impl.parts import require_kernels
from flash_attn2._impl.problem import NO_PAGES, NO_SEQLENS, Options, Problem, ScoreMod
from flash_attn2.distributed import agreement, dtensors, op
from flash_attn2.distributed.dtensors import Spread
from flash_attn2.distributed.plan import ContextPlan

__all__ = ["context_attention"]

_OF_THE_PLAN = ("causal", "window_size", "block_mask", "cu_seqlens", "pattern")


@named_only
def context_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: ContextPlan,
    *,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    **unknown: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """Self-attention of the plan's sequence, of which every rank gives and gets its own rows.

    q is (batch, rows, num_heads, head_dim), k is (batch, rows, num_heads_kv, head_dim) and v is
    (batch, rows, num_heads_kv, head_dim_v): the plan's rows of this rank, as `plan.shard` cuts
    them. Returns out (batch, rows, num_heads, head_dim_v), or (out, lse (batch, num_heads, rows)).
    All ranks of the plan's group must call it with the same options, and run the backward pass if
    one does. The plan's pattern takes the place of causal, window_size and block_mask.

    Options mean what they mean in `flash_attn_func`, in places of the whole sequence: out and
    gradients are those of one process, dropout included, whatever the number of ranks.
    alibi_slopes, sink and relative_bias (num_heads or 1, 2 * seqlen - 1) are whole on each rank.
    bias broadcasts to (batch, num_heads, rows, seqlen): the rank's rows, or one for all rows, the
    same on each rank.

    q, k and v may be DTensors on the mesh of the plan (of its ranks, in their order; of two
    dimensions, the outer one first) with placement Shard(1) in all of its dimensions. Then out is
    one, too, and lse is one with Shard(2). Their rows are those of rank 0, then those of rank 1,
    and so on: the sequence in the plan's order, which is its own where each rank has one range.
    Where ranks have other numbers of rows than DTensor's chunks, `DTensor.from_local` with shape
    and stride makes one of `plan.shard(x, 1)`; of DTensor's own operations, such ones can take
    those that leave rows where they are. Options may be DTensors, too: whole on each rank,
    Replicate(), and a bias with rows sharded along these.

    Gradients are of the sum of what all ranks make of their results. Those of sink, relative_bias
    and a bias for all rows are summed over the ranks, in a fixed order, and the same on each: do
    not sum them again. With `deterministic` gradients are the same bits in every run. Where several
    ranks have a KV head, each rounds its part of the gradient to k's dtype before they are summed
    in float32.

    With dropout, all ranks draw from their generators, and that of the first rank counts; a pass
    that is computed again with its generator set back, as torch.utils.checkpoint does, drops the
    same.

    Before anything is sent, ranks compare plans and arguments at the first call with new ones
    (FLASH_ATTN2_DISTRIBUTED_CHECK: "first", "always" or "off", the same on all ranks). Where one
    refuses its arguments (TypeError, ValueError, NotImplementedError) or has others, all raise
    (ValueError on those whose own arguments are right). Where they part ways at a call that some
    know already, that is seen only with "always"; else it shows, as a rank that is gone does, as
    an error of torch.distributed within the timeout of its group.
    """
    try:
        if unknown:
            _refuse(unknown)
        _require_plan(plan)
        spread = dtensors.spread_of(q, k, v, plan)
        if spread is not None:
            q, k, v = (spread.rows(x, 1) for x in (q, k, v))
        options = _checked(
            *(q, k, v, plan, softmax_scale, dropout_p, softcap, alibi_slopes, sink, bias),
            *(relative_bias, deterministic, return_lse, spread),
        )
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = to_autocast_dtype(q.device.type, q, k, v)
        if plan.scheme != "heads" and not torch.compiler.is_compiling():
            require_kernels(q, v)
    except Exception:
        if isinstance(plan, ContextPlan) and not torch.compiler.is_compiling():
            agreement.refuse(plan.ranks)
        raise
    out, lse = op.attend(plan, q, k, v, options, bool(return_lse))
    if spread is not None:
        out = spread.whole(out, 1)
        lse = spread.whole(lse, 2) if return_lse else lse
    return (out, lse) if return_lse else out


def _refuse(unknown: Any) -> None:
    """TypeError."""
    name = next(iter(unknown))
    if name in _OF_THE_PLAN:
        raise TypeError(
            f"context_attention has no argument {name!r}: which keys each query sees is the plan's "
            "pattern, context_plan(..., pattern=masks.causal())"
        )
    refuse_keywords(context_attention, unknown)


def _require_plan(plan: Any) -> None:
    if not isinstance(plan, ContextPlan):
        raise TypeError(f"plan must be made by context_plan, got {type(plan).__name__}")
    if not plan.ranks.groups and plan.size > 1:
        raise ValueError(
            f"plan must be of a process group or a mesh, got one that is made of numbers: {plan!r}"
        )


def _checked(
    q: Any,
    k: Any,
    v: Any,
    plan: ContextPlan,
    softmax_scale: Any,
    dropout_p: Any,
    softcap: Any,
    alibi_slopes: Any,
    sink: Any,
    bias: Any,
    relative_bias: Any,
    deterministic: Any,
    return_lse: Any,
    spread: Spread | None,
) -> Options:
    """What `flash_attn_func` would say of the whole, and that rows and heads are the plan's."""
    require_bool("return_lse", return_lse)
    require_tensors(("q", "k", "v"), q, k, v)
    options = make_options(
        *(dropout_p, softmax_scale, False, (-1, -1), softcap, alibi_slopes, sink, deterministic),
        *(None, bias, relative_bias),
    )
    options = dtensors.local_options(options, spread)
    if torch.compiler.is_compiling():
        return options  # shapes are checked where the op is traced
    check_tensors(plan, q, k, v, options)
    return options


def check_tensors(plan: ContextPlan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
    """Shapes, dtypes and devices of one rank's call."""
    rows = plan.rows[plan.rank]
    for name, x, heads in (
        ("q", q, plan.num_heads),
        ("k", k, plan.num_heads_kv),
        ("v", v, plan.num_heads_kv),
    ):
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, rows, num_heads, head_dim), got shape {tuple(x.shape)}"
            )
        if tuple(x.shape[1:3]) != (rows, heads):
            raise ValueError(
                f"{name} must have the plan's {rows} rows of rank {plan.rank} and {heads} heads, "
                f"got shape {tuple(x.shape)}"
            )
    if plan.pattern.batch not in (1, q.shape[0]):
        raise ValueError(
            f"q must have the batch of the plan's pattern, {plan.pattern.batch}, got {q.shape[0]}"
        )
    _, slopes, bias, relative_bias = options.score_mod
    if slopes is not None and slopes.requires_grad:
        raise NotImplementedError(
            "alibi_slopes requires grad, but flash_attn2 computes no gradient of it: pass "
            "alibi_slopes.detach(), or a learnable relative_bias"
        )
    given = {"alibi_slopes": slopes, "sink": options.sink, "bias": bias, "k": k, "v": v}
    for name, tensor in (given | {"relative_bias": relative_bias}).items():
        if tensor is not None:
            checks.check_device(name, tensor, q.device)
    if bias is not None and bias.ndim > 1 and bias.shape[-2] not in (1, rows):
        raise ValueError(
            f"bias must have the {rows} rows of rank {plan.rank}, or 1 for all rows, got shape "
            f"{tuple(bias.shape)}"
        )
    _check_whole(plan, q, k, v, options)


def _check_whole(plan: ContextPlan, q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
    """As of one process with all rows, of which nothing is there but shapes."""

    def whole(x: Tensor | None, rows_dim: int | None = None) -> Any:
        if x is None:
            return None
        shape = list(x.shape)
        if rows_dim is not None:
            shape[rows_dim] = plan.seqlen
        return torch.empty(shape, dtype=x.dtype, device="meta")

    softcap, slopes, bias, relative_bias = options.score_mod
    bias_rows = -2 if bias is not None and bias.ndim > 1 and bias.shape[-2] != 1 else None
    score_mod = ScoreMod(softcap, whole(slopes), whole(bias, bias_rows), whole(relative_bias))
    options = options._replace(score_mod=score_mod, sink=whole(options.sink))
    rows = (whole(q, 1), whole(k, 1), whole(v, 1))
    checks.check_dense(Problem(*rows, NO_SEQLENS, NO_SEQLENS, options, NO_PAGES))

"""`context_attention` as ops, which compilers do not look into; a plan goes by its key.

flash_attn2::context_forward    the call of one rank, and what its backward pass needs
flash_attn2::context_backward   gradients
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import Options, ScoreMod
from flash_attn2.distributed import agreement, flops
from flash_attn2.distributed.digest import digest
from flash_attn2.distributed.heads_scheme import SAVED_NAMES, HeadsScheme, Numbers, Saved, Tensors
from flash_attn2.distributed.plan import ContextPlan, plan_of_key

_NUMBERS = "float? softmax_scale, float softcap, float dropout_p, bool deterministic, bool with_lse"
_TENSORS = "Tensor? alibi_slopes, Tensor? sink, Tensor? bias, Tensor? relative_bias"
_SAVED = ", ".join(f"Tensor saved_{name}" for name in SAVED_NAMES)
_NUM_SAVED = len(SAVED_NAMES)


def attend(
    plan: ContextPlan, q: Tensor, k: Tensor, v: Tensor, options: Options, with_lse: bool
) -> tuple[Tensor, Tensor]:
    """out and lse, which is empty without `with_lse`, of checked arguments."""
    softcap, slopes, bias, relative_bias = options.score_mod
    given = (q, k, v, options.sink, bias, relative_bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in given]
    numbers = Numbers(
        *(options.softmax_scale, softcap, options.dropout.drop_prob, options.deterministic),
        with_lse,
    )
    tensors = Tensors(slopes, options.sink, bias, relative_bias)
    out, lse, *_ = torch.ops.flash_attn2.context_forward(
        *(q, k, v), *tensors, *numbers, plan.key, wanted
    )
    return out, lse


def _signature(
    plan: ContextPlan,
    q: Tensor,
    head_dim_v: int,
    tensors: Tensors,
    numbers: Numbers,
    wanted: list[bool],
) -> int:
    """What all ranks must have alike."""
    described = []
    for name, x in tensors._asdict().items():
        shape = None
        if x is not None:
            shape = list(x.shape)
            if name == "bias" and x.ndim > 1 and shape[-2] == q.shape[1]:
                shape[-2] = -1  # the rank's own rows
        described.append(None if x is None else (str(x.dtype), tuple(shape or ())))
    of_q = (str(q.dtype), q.device.type, q.shape[0], q.shape[3], head_dim_v)
    return digest(plan.call_signature, of_q, tuple(described), tuple(numbers), tuple(wanted))


def _forward(*args: Any) -> tuple[Tensor, ...]:
    q, k, v, tensors, numbers, plan, wanted = _taken_apart(args)
    if plan.ranks.groups:
        agreement.agree(plan.ranks, _signature(plan, q, v.shape[3], tensors, numbers, wanted))
    out, lse, saved = HeadsScheme(plan).forward(q, k, v, tensors, numbers)
    if not any(wanted):
        return out, lse, *(x.new_empty(0) for x in saved)
    return out, lse, *saved


def _taken_apart(args: Any) -> Any:
    q, k, v, *rest = args
    plan, wanted = plan_of_key(rest[9]), list(rest[10])
    return q, k, v, Tensors(*rest[:4]), Numbers(*rest[4:9]), plan, wanted


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    from flash_attn2.distributed.attention import check_tensors

    q, k, v, tensors, numbers, plan, wanted = _taken_apart(args)
    slopes, sink, bias, relative_bias = tensors
    score_mod = ScoreMod(numbers.softcap, slopes, bias, relative_bias)
    check_tensors(plan, q, k, v, Options(score_mod=score_mod, sink=sink))
    batch, rows, num_heads, head_dim = q.shape
    scheme = HeadsScheme(plan)
    lse = q.new_empty((batch, num_heads, rows) if numbers.with_lse else (0,), dtype=torch.float32)
    dtypes = {"lse": scheme.lse_dtype, "bias": q.dtype if bias is None else bias.dtype}
    shapes = scheme.saved_shapes(batch, head_dim, v.shape[3], bias)
    shapes["rng_state"] = (2 if numbers.dropout_p else 0,)
    dtypes["rng_state"] = torch.int64
    saved = [
        q.new_empty(shapes[name] if any(wanted) else (0,), dtype=dtypes.get(name, q.dtype))
        for name in SAVED_NAMES
    ]
    return q.new_empty((batch, rows, num_heads, v.shape[3])), lse, *saved


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, _, slopes, sink, bias, relative_bias, *numbers, key, wanted = inputs
    ctx.save_for_backward(slopes, sink, bias, relative_bias, *output[2:])
    ctx.numbers, ctx.key, ctx.wanted = numbers, key, wanted
    ctx.plan = plan_of_key(key)  # kept


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor, *_: Any) -> tuple[Any, ...]:
    slopes, sink, bias, relative_bias, *saved = ctx.saved_tensors
    grad_q, grad_k, grad_v, *others = torch.ops.flash_attn2.context_backward(
        *(grad_out, grad_lse, *saved, slopes, sink, bias, relative_bias),
        *(*ctx.numbers, ctx.key, ctx.wanted),
    )
    grads = [grad_q, grad_k, grad_v, *others]
    of_sink, of_bias, of_relative = (
        grad if want else None for grad, want in zip(grads[3:], ctx.wanted[3:], strict=True)
    )
    of_qkv = (grad if want else None for grad, want in zip(grads, ctx.wanted[:3], strict=False))
    return *of_qkv, None, of_sink, of_bias, of_relative, *[None] * 7


def _backward(grad_out: Tensor, grad_lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    saved, rest = Saved(*args[:_NUM_SAVED]), args[_NUM_SAVED:]
    tensors, numbers = Tensors(*rest[:4]), Numbers(*rest[4:9])
    plan, wanted = plan_of_key(rest[9]), rest[10]
    lse = grad_lse if numbers.with_lse else None
    found = HeadsScheme(plan).backward(
        grad_out, lse, saved, tensors, numbers, (wanted[3], wanted[4], wanted[5])
    )
    return tuple(grad_out.new_empty(0) if x is None else x for x in found)


def _backward_fake(grad_out: Tensor, grad_lse: Tensor, *args: Any) -> tuple[Tensor, ...]:
    saved, rest = Saved(*args[:_NUM_SAVED]), args[_NUM_SAVED:]
    _, sink, bias, relative_bias = rest[:4]
    plan, wanted = plan_of_key(rest[9]), rest[10]
    batch, rows, num_heads, head_dim_v = grad_out.shape
    head_dim, heads_kv = saved.q.shape[3], plan.num_heads_kv
    of_q = saved.q.new_empty((batch, rows, num_heads, head_dim))
    of_kv = (saved.q.new_empty((batch, rows, heads_kv, x)) for x in (head_dim, head_dim_v))
    others = (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if want
        else grad_out.new_empty(0)
        for x, want in zip((sink, bias, relative_bias), wanted[3:], strict=True)
    )
    return of_q, *of_kv, *others


def _refuse_second(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError("attention can be differentiated only once")


_FORWARD: Any = torch.library.custom_op(
    "flash_attn2::context_forward",
    _forward,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_TENSORS}, {_NUMBERS}, str plan, bool[] wanted) -> "
    f"(Tensor out, Tensor lse, {_SAVED})",
)
_FORWARD.register_fake(_forward_fake)
_FORWARD.register_autograd(_differentiate, setup_context=_setup)
_BACKWARD: Any = torch.library.custom_op(
    "flash_attn2::context_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor grad_lse, {_SAVED}, {_TENSORS}, {_NUMBERS}, str plan, "
    "bool[] wanted) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_sink, "
    "Tensor grad_bias, Tensor grad_relative_bias)",
)
_BACKWARD.register_fake(_backward_fake)
_BACKWARD.register_autograd(_refuse_second)
flops.register()

"""What happens around a call of a kernel: autograd, autocast, torch.func, the dispatcher.

The functions `forward` and `backward` skip the dispatcher, which costs more time than the rest of a
small call, when nothing would observe the op: plain eager tensors, no mode, no tracer. Autograd is
an `autograd.Function` either way; `torch.library.register_autograd` would take twice as long per
call, and does not work under torch.func.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from flash_attn2 import _checks, _launch
from flash_attn2._launch import Gradients, Options, Packing, PlainOptions, Result, Saved

Tensors = tuple[Tensor, ...]

_ops: Any = torch.ops.flash_attn2  # defined in ops.py


def forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> Result:
    """Attention of dense tensors or, with `packing`, of packed sequences.

    Returns out, lse, rng_state (None or empty without dropout).
    """
    if not torch.compiler.is_compiling():
        device_type = "cuda" if q.is_cuda else "cpu"
        if torch.is_autocast_enabled(device_type):
            q, k, v = to_autocast_dtype(device_type, q, k, v)
        circumstances = _circumstances((q, k, v, options.alibi_slopes, options.sink))
        if circumstances == _PLAIN:
            return attend(q, k, v, packing, options)
        if circumstances != _OBSERVED:
            transformed = circumstances == _TRANSFORMED
            function = TransformedAttention if transformed else Attention
            result: Result = apply(function, q, k, v, packing, options)
            return result
    op = _ops.forward if packing is None else _ops.varlen_forward
    return op(q, k, v, *(packing or ()), *options)  # type: ignore[no-any-return]


def plain_forward(
    q: Any, k: Any, v: Any, options: PlainOptions, deterministic: bool
) -> Tensor | None:
    """`out` of `flash_attn_func` by `_launch.plain`, or None: not such a call, or it is observed.

    Nothing need be checked before.
    """
    if (
        torch.compiler.is_compiling()
        or not (type(q) is type(k) is type(v) is Tensor and q.is_cpu)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    circumstances = _circumstances((q, k, v))
    if circumstances == _PLAIN:
        return _launch.plain(q, k, v, None, options)
    if circumstances != _DIFFERENTIATED or q.ndim != 4:
        return None
    lse = _launch.dense_lse(q)
    out = _launch.plain(q, k, v, lse, options)
    if out is None:
        return None
    result: Tensor = PlainAttention.apply(q, k, v, (out, lse), options, deterministic)  # type: ignore[no-untyped-call]
    return result


def backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    packing: Packing | None,
    options: Options,
) -> Gradients:
    """Gradients of q, k, v and sink; None or empty for those that are None."""
    if not torch.compiler.is_compiling():
        circumstances = _circumstances(
            (*saved, grad_out, grad_lse, options.alibi_slopes, options.sink)
        )
        if circumstances == _PLAIN:
            return differentiate(grad_out, grad_lse, saved, packing, options)
        if circumstances != _OBSERVED:
            grads: Gradients = apply(FirstDerivatives, grad_out, grad_lse, *saved, packing, options)
            return grads
    op = _ops.backward if packing is None else _ops.varlen_backward
    return op(grad_out, grad_lse, *saved, *(packing or ()), *options)  # type: ignore[no-any-return]


# What goes on around a call.
_PLAIN, _DIFFERENTIATED, _TRANSFORMED, _OBSERVED = range(4)


def _circumstances(tensors: tuple[Tensor | None, ...]) -> int:
    """Of a call with these tensors, q first. When in doubt, something observes the op."""
    q = tensors[0]
    assert q is not None
    transform: Any = peek_interpreter_stack()
    if transform is not None:
        functionalized = transform.key() == TransformType.Functionalize
        return _OBSERVED if functionalized else _TRANSFORMED
    if (
        not (q.is_cpu or q.is_cuda)
        or _len_torch_dispatch_stack() != 0
        or _len_torch_function_stack() != 0
        or _get_tracing_state() is not None
        or _profiler_enabled()
    ):
        return _OBSERVED
    grad_enabled = torch.is_grad_enabled()
    # At a level of forward-mode differentiation, a tangent must not get lost.
    differentiated = grad_enabled and forward_ad._current_level >= 0
    for tensor in tensors:
        if tensor is None:
            continue
        if (type(tensor) is not Tensor and type(tensor) is not Parameter) or tensor.is_neg():
            return _OBSERVED
        if grad_enabled and tensor.requires_grad:
            differentiated = True
    return _DIFFERENTIATED if differentiated else _PLAIN


def to_autocast_dtype(device_type: str, *tensors: Tensor | None) -> list[Any]:
    """In the lower precision of the autocast region, as scaled_dot_product_attention has them."""
    dtype = torch.get_autocast_dtype(device_type)
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]


# What remains when nothing observes the call and no gradient is asked for.


def checked(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The unpacked inputs, after those checks that need no values."""
    if k is None or v is None:
        q, k, v = _launch.unpacked(q, k, v)
    if packing is None:
        _checks.check_dense(q, k, v, options.alibi_slopes, options.sink)
    else:
        _checks.check_varlen(q, k, v, packing, options.alibi_slopes, options.sink)
    return q, k, v


def attend(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> Result:
    q, k, v = checked(q, k, v, packing, options)
    _checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    if packing is None:
        return _launch.dense(q, k, v, options)
    _checks.check_lengths(q, k, packing)
    return _launch.varlen(q, k, v, packing, options)


def differentiate(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    packing: Packing | None,
    options: Options,
) -> Gradients:
    """Of arguments that a forward pass left, which are not checked again."""
    if packing is None:
        return _launch.dense_backward(grad_out, grad_lse, saved, options)
    return _launch.varlen_backward(grad_out, grad_lse, saved, packing, options)


def without_none(results: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> Tensors:
    """None becomes a tensor without elements, as ops return nothing but tensors."""
    first = results[0]
    assert first is not None
    return tuple(first.new_empty(0, dtype=dtype) if x is None else x for x in results)


# Functions of autograd take flat arguments, since autograd does not look into tuples.

_SLOPES, _SINK = (
    Options._fields.index(name) - len(Options._fields) for name in ("alibi_slopes", "sink")
)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    *tensors, packing, options = args
    return function.apply(*tensors, *(packing or ()), *options)  # type: ignore[no-untyped-call]


def _split(values: Sequence[Any]) -> tuple[Packing | None, Options]:
    """Packing and options from the end of flat arguments."""
    count = len(values) - len(Options._fields)
    return Packing(*values[:count]) if count else None, Options(*values[count:])


def _save(ctx: Any, inputs: Sequence[Any], result: Sequence[Tensor | None]) -> None:
    if (slopes := inputs[_SLOPES]) is not None and slopes.requires_grad:
        raise NotImplementedError(
            "alibi_slopes requires grad, but flash_attn2 computes no gradient of it: pass "
            "alibi_slopes.detach()"
        )
    everything = (*inputs[:3], *result, *inputs[3:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in everything))
    ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in everything)


class Attention(torch.autograd.Function):
    """`forward` and `backward`, for autograd."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, v: Tensor | None, *values: Any) -> Result:
        result = forward(q, k, v, *_split(values))
        _save(ctx, (q, k, v, *values), result)
        return result

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: None) -> Any:
        everything = [
            number if tensor is None else tensor
            for tensor, number in zip(ctx.saved_tensors, ctx.numbers, strict=True)
        ]
        count = len(Saved._fields)
        saved, values = Saved(*everything[:count]), everything[count:]
        grads: list[Tensor | None] = [None] * (3 + len(values))
        if grad_out is not None or grad_lse is not None:
            *grad_qkv, grad_sink = backward(grad_out, grad_lse, saved, *_split(values))
            grads[:3] = (None if x is None else g for x, g in zip(saved, grad_qkv, strict=False))
            grads[_SINK] = None if values[_SINK] is None else grad_sink
        return tuple(grads)


class PlainAttention(torch.autograd.Function):
    """`Attention` after a plain call, with fewer arguments, each of which takes time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        result: tuple[Tensor, Tensor],
        options: PlainOptions,
        deterministic: bool,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, *result)
        ctx.options = options, deterministic
        return result[0]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 6
        (dropout_p, scale, causal, window_size, softcap), deterministic = ctx.options
        options = _checks.make_options(
            dropout_p, scale, causal, window_size, softcap, None, None, deterministic
        )
        q, k, v, out, lse = ctx.saved_tensors
        saved = Saved(q, k, v, out, lse, None)
        grad_q, grad_k, grad_v, _ = backward(grad_out, None, saved, None, options)
        return grad_q, grad_k, grad_v, None, None, None


class TransformedAttention(torch.autograd.Function):
    """`Attention` in the form that torch.func asks for, which takes more time per call."""

    @staticmethod
    def forward(q: Tensor, k: Tensor | None, v: Tensor | None, *values: Any) -> Tensors:
        return without_none(forward(q, k, v, *_split(values)), torch.int64)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, inputs, output)

    backward = Attention.backward

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        _, options = _split(args[3:])
        if options.dropout_p > 0 and info.randomness != "different":
            raise RuntimeError(
                "torch.vmap of attention with dropout needs randomness='different', "
                f"got {info.randomness!r}"
            )
        return _one_by_one(TransformedAttention, info, in_dims, args)


class FirstDerivatives(torch.autograd.Function):
    """First derivatives, which have none of their own."""

    @staticmethod
    def forward(*args: Any) -> Tensors:
        count = 2 + len(Saved._fields)
        grad_out, grad_lse, *saved = args[:count]
        return without_none(backward(grad_out, grad_lse, Saved(*saved), *_split(args[count:])))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        packing, _ = _split(inputs[2 + len(Saved._fields) :])
        ctx.op = "backward" if packing is None else "varlen_backward"

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"flash_attn2::{ctx.op} has no derivative: attention can be differentiated only once"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        return _one_by_one(FirstDerivatives, info, in_dims, args)


def _one_by_one(
    function: type[torch.autograd.Function],
    info: Any,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
) -> tuple[Tensors, tuple[int, ...]]:
    """One call for each element of the dimension that torch.vmap maps."""
    results = [
        function.apply(  # type: ignore[no-untyped-call]
            *(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
        )
        for i in range(info.batch_size)
    ]
    stacked = tuple(torch.stack(values) for values in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)

"""What happens around a call of a kernel: autograd, autocast, torch.func, the dispatcher.

The functions `forward` and `backward` skip the dispatcher, which costs more time than the rest of a
small call, when nothing would observe the op: plain eager tensors, no mode, no tracer. Autograd is
an `autograd.Function` either way; `torch.library.register_autograd` would take twice as long per
call, and does not work under torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_autocast_enabled
from torch.compiler import is_compiling

from flash_attn2._impl import checks, launch
from flash_attn2._impl.launch import Gradients, Options, Packing, PlainOptions, Result, Saved
from flash_attn2._impl.observe import (
    DIFFERENTIATED,
    OBSERVED,
    PLAIN,
    TRANSFORMED,
    circumstances,
    circumstances_of_plain,
    no_forward_mode,
    with_memory,
)
from flash_attn2._impl.tensors import require_allocated

Tensors = tuple[Tensor, ...]

_ops: Any = torch.ops.flash_attn2  # defined in ops.py


def forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> Result:
    """Attention of dense tensors or, with `packing`, of packed sequences.

    Returns out, lse, rng_state (None or empty without dropout).
    """
    if not is_compiling():
        device_type = "cuda" if q.is_cuda else "cpu"
        if is_autocast_enabled(device_type):
            q, k, v = to_autocast_dtype(device_type, q, k, v)
        around = circumstances((q, k, v, *_tensors_of(packing, options)))
        if around == PLAIN:
            return attend(q, k, v, packing, options)
        if around != OBSERVED:
            function = TransformedAttention if around == TRANSFORMED else Attention
            result: Result = apply(function, q, k, v, packing, options)
            return result
    op = _ops.forward if packing is None else _ops.varlen_forward
    return op(q, k, v, *(packing or ()), *options)  # type: ignore[no-any-return]


def plain_forward(
    q: Any, k: Any, v: Any, options: PlainOptions, deterministic: bool
) -> Tensor | None:
    """`out` of `flash_attn_func` by `launch.plain`, or None: not such a call, or it is observed.

    Nothing need be checked before.
    """
    if (
        is_compiling()
        or not (type(q) is type(k) is type(v) is Tensor and q.is_cpu)
        or is_autocast_enabled("cpu")
    ):
        return None
    around = circumstances_of_plain((q, k, v))
    if around == PLAIN:
        return launch.plain(q, k, v, None, options)
    if around != DIFFERENTIATED or q.ndim != 4 or q.is_nested:
        return None
    lse = launch.dense_lse(q)
    out = launch.plain(q, k, v, lse, options)
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
    if not is_compiling():
        tensors = (*saved, grad_out, grad_lse, *_tensors_of(packing, options))
        around = circumstances_of_plain(tensors)
        if around == PLAIN and packing is None:
            plain = launch.plain_backward(grad_out, grad_lse, saved, options)
            if plain is not None:
                return plain
        around = with_memory(around, tensors)
        if around == PLAIN:
            return differentiate(grad_out, grad_lse, saved, packing, options)
        if around != OBSERVED:
            grads: Gradients = apply(FirstDerivatives, grad_out, grad_lse, *saved, packing, options)
            return grads
    op = _ops.backward if packing is None else _ops.varlen_backward
    return op(grad_out, grad_lse, *saved, *(packing or ()), *options)  # type: ignore[no-any-return]


def _tensors_of(packing: Packing | None, options: Options) -> tuple[Tensor | None, ...]:
    of_options = options.alibi_slopes, options.sink
    return of_options if packing is None else (*packing[:3], *of_options)


_CAST = ("q", "k", "v", "rotary_cos", "rotary_sin")  # in this order, as many as there are


def to_autocast_dtype(device_type: str, *tensors: Tensor | None) -> list[Any]:
    """In the lower precision of the autocast region, as scaled_dot_product_attention has them."""
    dtype = torch.get_autocast_dtype(device_type)
    require_allocated(**dict(zip(_CAST, tensors, strict=False)))
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]


# What remains when nothing observes the call and no gradient is asked for.


def checked(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The unpacked inputs, after those checks that need no values."""
    given_q, given_k = q, k
    packed = k is None or v is None
    if k is None or v is None:
        q, k, v = launch.unpacked(q, k, v)
    try:
        if packing is None:
            checks.check_dense(q, k, v, options.alibi_slopes, options.sink)
        else:
            checks.check_varlen(q, k, v, packing, options.alibi_slopes, options.sink)
    except (TypeError, ValueError):
        if packed:  # in the words of those who gave it
            checks.check_packed(given_q, given_k)
        raise
    return q, k, v


def checked_results(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    packing: Packing | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """q and k, after those checks that need no values."""
    q, k, _ = checked(*saved[:3], packing, options)
    shape = launch.lse_shape(q)
    checks.check_results(grad_out, grad_lse, q, saved, shape, options.dropout_p)
    return q, k


def attend(
    q: Tensor, k: Tensor | None, v: Tensor | None, packing: Packing | None, options: Options
) -> Result:
    q, k, v = checked(q, k, v, packing, options)
    checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    if packing is None:
        return launch.dense(q, k, v, options)
    checks.check_lengths(q, k, packing)
    return launch.varlen(q, k, v, packing, options)


def differentiate(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    packing: Packing | None,
    options: Options,
) -> Gradients:
    """Of arguments that a forward pass left, whose values are not checked again.

    Their shapes are, since torch.autograd.graph.saved_tensors_hooks may have put in others.
    """
    checked_results(grad_out, grad_lse, saved, packing, options)
    if packing is None:
        return launch.dense_backward(grad_out, grad_lse, saved, options)
    return launch.varlen_backward(grad_out, grad_lse, saved, packing, options)


def without_none(results: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> Tensors:
    """None becomes a tensor without elements, as ops return nothing but tensors."""
    first = results[0]
    assert first is not None
    return tuple(first.new_empty(0, dtype=dtype) if x is None else x for x in results)


# Functions of autograd take flat arguments, since autograd does not look into tuples.

_SLOPES, _SINK, _DROPOUT = (
    Options._fields.index(name) - len(Options._fields)
    for name in ("alibi_slopes", "sink", "dropout_p")
)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    *tensors, packing, options = args
    return function.apply(*tensors, *(packing or ()), *options)  # type: ignore[no-untyped-call]


def _split(values: Sequence[Any]) -> tuple[Packing | None, Options]:
    """Packing and options from the end of flat arguments."""
    count = len(values) - len(Options._fields)
    return Packing(*values[:count]) if count else None, Options(*values[count:])


def _save(ctx: Any, inputs: Sequence[Any], result: Sequence[Tensor | None]) -> None:
    """The same tensors in the same order whoever observes the call, as checkpointing asks for."""
    if (slopes := inputs[_SLOPES]) is not None and slopes.requires_grad:
        raise NotImplementedError(
            "alibi_slopes requires grad, but flash_attn2 computes no gradient of it: pass "
            "alibi_slopes.detach()"
        )
    out, lse, rng_state = result
    if inputs[_DROPOUT] == 0:
        rng_state = None  # ops return an empty one
    everything = (*inputs[:3], out, lse, rng_state, *inputs[3:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in everything))
    ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in everything)


class _Function(torch.autograd.Function):
    """With reverse mode only."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode()


class Attention(_Function):
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


class PlainAttention(_Function):
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
        options = checks.make_options(
            dropout_p, scale, causal, window_size, softcap, None, None, deterministic
        )
        q, k, v, out, lse = ctx.saved_tensors
        saved = Saved(q, k, v, out, lse, None)
        grad_q, grad_k, grad_v, _ = backward(grad_out, None, saved, None, options)
        return grad_q, grad_k, grad_v, None, None, None


class TransformedAttention(_Function):
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
        require_different_randomness(info, options.dropout_p)
        return one_by_one(TransformedAttention.apply, info, in_dims, args)


class FirstDerivatives(_Function):
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
        return one_by_one(FirstDerivatives.apply, info, in_dims, args)


def one_by_one(
    function: Callable[..., Tensors], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Tensors, tuple[int, ...]]:
    """One call for each element of the dimension that torch.vmap maps.

    None is an element as well: one call with zeros tells the shapes of the results.
    """

    def element(x: Any, dim: int | None, i: int) -> Any:
        if dim is None:
            return x
        return x.select(dim, i) if info.batch_size else x.sum(dim, dtype=x.dtype)

    results = [
        function(*(element(x, dim, i) for x, dim in zip(args, in_dims, strict=True)))
        for i in range(max(info.batch_size, 1))
    ]
    stacked = tuple(torch.stack(values)[: info.batch_size] for values in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def require_different_randomness(info: Any, dropout_p: float) -> None:
    """RuntimeError where torch.vmap is to draw dropout masks in another way."""
    if dropout_p > 0 and info.randomness != "different":
        raise RuntimeError(
            "torch.vmap of attention with dropout needs randomness='different', "
            f"got {info.randomness!r}"
        )

"""What happens around a call of a kernel: autograd, torch.func, the dispatcher.

`attend` and `backward` skip the dispatcher, which costs more time than the rest of a small call,
when nothing would observe the op: plain eager tensors, no mode, no tracer. Autograd is an
`autograd.Function` either way; `torch.library.register_autograd` would take twice as long per call,
and does not work under torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, contiguous_format, get_num_threads, is_autocast_enabled
from torch.compiler import is_compiling

from flash_attn2._impl import backends, dtensors, launch, no_gradient
from flash_attn2._impl.block_mask import require_unmapped
from flash_attn2._impl.dtensors import is_dtensor
from flash_attn2._impl.forms import BIASES, DENSE, Form, differentiate, run
from flash_attn2._impl.launch import DirectOptions
from flash_attn2._impl.observe import (
    DIFFERENTIATED,
    OBSERVED,
    TRANSFORMED,
    UNOBSERVED,
    circumstances,
    in_memory,
    no_forward_mode,
)
from flash_attn2._impl.options import make_options
from flash_attn2._impl.problem import BiasGradient, Gradient, Problem, Result
from flash_attn2._impl.tensors import require_allocated

Tensors = tuple[Tensor, ...]

ops: Any = torch.ops.flash_attn2  # defined in ops.py


def attend(form: Form, p: Problem) -> Result:
    """out, lse, rng_state (None or empty without dropout; ops over a cache leave it out).

    The one path of all calls but the direct ones.
    """
    if type(p.q) is not Tensor and is_dtensor(p.q):
        return dtensors.attend(form, p, attend)
    if not is_compiling():
        device_type = "cuda" if p.q.is_cuda else "cpu"
        if is_autocast_enabled(device_type) and not form.over_cache:  # there, callers do it
            q, k, v = to_autocast_dtype(device_type, p.q, p.k, p.v)
            p = p._replace(q=q, k=k, v=v)
        around = circumstances(form.signature.tensors(p))
        if around == UNOBSERVED:
            return run(form, p)
        if form.backward_op is None:
            if around == DIFFERENTIATED:
                return *no_gradient.attend(form, p), None
            p = no_gradient.for_op(form, p)
        elif around != OBSERVED:
            function = TransformedAttention if around == TRANSFORMED else Attention
            return function.apply(form, *form.signature.flatten(p))  # type: ignore[no-any-return, no-untyped-call]
    return getattr(ops, form.op)(*form.signature.flatten(p))  # type: ignore[no-any-return]


def attend_directly(
    q: Any, k: Any, v: Any, options: DirectOptions, deterministic: bool
) -> tuple[bool, Tensor | None]:
    """Whether native code that makes all checks itself has done the call, and `out`.

    Not if the call is wrong, less simple, or observed; `out`, if there is one, is then memory for
    the result. Nothing need be checked before.
    """
    if (
        is_compiling()
        or not (type(q) is type(k) is type(v) is Tensor and q.is_cpu)
        or is_autocast_enabled("cpu")
    ):
        return False, None
    around = circumstances((q, k, v), False)
    function = (backends.for_cpu_tensors or backends.serving(q)).forward_direct
    if around > DIFFERENTIATED or function is None:
        return False, None
    try:
        if around == UNOBSERVED:
            out = launch.empty_like(q, memory_format=contiguous_format)
            return function((q, k, v, out), 0, options, get_num_threads()), out
        if q.ndim != 4 or q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
            return False, None
    except (RuntimeError, IndexError):  # nested, sparse, without dimensions: the checks say so
        return False, None
    batch, seqlen_q, num_heads, _ = q.shape
    out = launch.empty_like(q, memory_format=contiguous_format)
    lse = launch.empty(batch, num_heads, seqlen_q, dtype=torch.float32, device=q.device)
    if not function((q, k, v, out), lse.data_ptr(), options, get_num_threads()):
        return False, None
    return True, DirectAttention.apply(q, k, v, (out, lse), options, deterministic)  # type: ignore[no-untyped-call]


def backward(form: Form, gradient: Any) -> tuple[Any, ...]:
    """What the backward op of the form returns; None or empty for what there is no gradient of."""
    assert form.backward_op is not None
    assert form.backward_signature is not None
    signature = form.backward_signature
    if not is_compiling():
        # q first, which is always there
        tensors = (gradient.forward.q, *signature.tensors(gradient))
        around = circumstances(tensors, False)
        if around == UNOBSERVED:
            direct = None if form is BIASES else launch.backward_direct(gradient)
            if direct is not None:
                return direct
        if around <= DIFFERENTIATED and not in_memory(tensors):
            around = OBSERVED
        if around == UNOBSERVED:
            return differentiate(form, gradient)
        if around != OBSERVED:
            return FirstDerivatives.apply(form, *signature.flatten(gradient))  # type: ignore[no-any-return, no-untyped-call]
    return getattr(ops, form.backward_op)(*signature.flatten(gradient))  # type: ignore[no-any-return]


_CAST = ("q", "k", "v")  # in this order, as many as there are


def to_autocast_dtype(device_type: str, *tensors: Tensor | None) -> list[Any]:
    """In the lower precision of the autocast region, as scaled_dot_product_attention has them."""
    dtype = torch.get_autocast_dtype(device_type)
    require_allocated(**dict(zip(_CAST, tensors, strict=False)))
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]


def tables_in_autocast(device_type: str, *tables: Tensor | None) -> list[Any]:
    """Rotary tables, which stay in float32 where they are."""
    require_allocated(**dict(zip(("rotary_cos", "rotary_sin"), tables, strict=True)))
    dtype = torch.get_autocast_dtype(device_type)
    kept = (torch.float32, torch.float64)
    return [x if x is None or x.dtype in kept else x.to(dtype) for x in tables]


def without_none(
    results: Sequence[Tensor | None],
    dtype: torch.dtype | None = None,
    like: Tensor | None = None,
) -> Tensors:
    """None becomes a tensor without elements, as ops return nothing but tensors; like the first
    one, or `like` where all are None."""
    first = next(x for x in (*results, like) if x is not None)
    return tuple(first.new_empty(0, dtype=dtype) if x is None else x for x in results)


# Functions of autograd take a form and flat arguments, since autograd does not look into tuples.
# What a backward op takes after the incoming gradients is q, k, v, the results, and the rest.

_QKV = 3


def save(ctx: Any, inputs: Sequence[Any], result: Sequence[Tensor | None]) -> None:
    """The same tensors in the same order whoever observes the call, as checkpointing asks for."""
    form, *values = inputs
    names = form.signature.names
    if (slopes := values[names.index("alibi_slopes")]) is not None and slopes.requires_grad:
        raise NotImplementedError(
            "alibi_slopes requires grad, but flash_attn2 computes no gradient of it: pass "
            "alibi_slopes.detach(), or a learnable relative_bias"
        )
    out, lse, rng_state = result
    if values[names.index("dropout_p")] == 0:
        rng_state = None  # ops return an empty one
    # Without the last one, a state that was given: it is among the results.
    everything = (None, None, *values[:_QKV], out, lse, rng_state, *values[_QKV:-1])
    _, _, *tensors = form.backward_signature.pick_tensors(everything)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.form, ctx.numbers = form, form.backward_signature.pick_numbers(everything)


_BIASES = ("bias", "relative_bias")


class _Function(torch.autograd.Function):
    """With reverse mode only."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise no_forward_mode()


class Attention(_Function):
    """`attend` and `backward`, for autograd."""

    @staticmethod
    def forward(ctx: Any, form: Form, *values: Any) -> Result:
        result = attend(form, form.signature.unflatten(values))
        save(ctx, (form, *values), result)
        return result

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: None) -> Any:
        form, signature = ctx.form, ctx.form.backward_signature
        grads: list[Tensor | None] = [None] * (1 + len(form.signature.names))
        if grad_out is not None or grad_lse is not None:
            values = signature.join((grad_out, grad_lse, *ctx.saved_tensors, *ctx.numbers))
            gradient = signature.unflatten(values)
            p = gradient.forward
            *grad_qkv, grad_sink = backward(form, gradient)
            for i, (x, grad) in enumerate(zip((p.q, p.k, p.v), grad_qkv, strict=True), start=1):
                grads[i] = None if x is None else grad
            if p.options.sink is not None:
                grads[1 + form.signature.names.index("sink")] = grad_sink
            if form is DENSE:
                wanted = [ctx.needs_input_grad[1 + DENSE.signature.names.index(x)] for x in _BIASES]
                if any(wanted):
                    of_biases = backward(BIASES, BiasGradient(grad_out, grad_lse, p, *wanted))
                    for name, given, grad in zip(_BIASES, wanted, of_biases, strict=True):
                        if given:
                            grads[1 + DENSE.signature.names.index(name)] = grad
        return tuple(grads)


class DirectAttention(_Function):
    """`Attention` after a direct call, with fewer arguments, each of which takes time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        result: tuple[Tensor, Tensor],
        options: DirectOptions,
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
        options, deterministic = ctx.options
        q, k, v, out, lse = ctx.saved_tensors
        if circumstances((q, k, v, out, lse, grad_out), False) == UNOBSERVED:
            grads = launch.backward_directly(q, k, v, out, lse, grad_out, options, deterministic)
            if grads is not None:
                return *grads, None, None, None
        dropout_p, scale, causal, window_size, softcap = options
        p = Problem(
            *(q, k, v),
            options=make_options(
                dropout_p, scale, causal, window_size, softcap, None, None, deterministic
            ),
            out=out,
            lse=lse,
        )
        grad_q, grad_k, grad_v, _ = backward(DENSE, Gradient(grad_out, None, p))
        return grad_q, grad_k, grad_v, None, None, None


class TransformedAttention(_Function):
    """`Attention` in the form that torch.func asks for, which takes more time per call."""

    @staticmethod
    def forward(form: Form, *values: Any) -> Tensors:
        return without_none(attend(form, form.signature.unflatten(values)), torch.int64)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, inputs, output)

    backward = Attention.backward

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], form: Form, *values: Any) -> Any:
        require_different_randomness(info, form.signature.unflatten(values).options.dropout[0])
        require_unmapped(form.signature.names, in_dims[1:])
        return one_by_one(TransformedAttention.apply, info, in_dims, (form, *values))


class FirstDerivatives(_Function):
    """First derivatives, which have none of their own."""

    @staticmethod
    def forward(form: Form, *values: Any) -> Tensors:
        assert form.backward_signature is not None
        gradient = form.backward_signature.unflatten(values)
        return without_none(backward(form, gradient), like=gradient.forward.q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op = inputs[0].backward_op

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"flash_attn2::{ctx.op} has no derivative: attention can be differentiated only once"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], form: Form, *values: Any) -> Any:
        assert form.backward_signature is not None
        require_unmapped(form.backward_signature.names, in_dims[1:])
        return one_by_one(FirstDerivatives.apply, info, in_dims, (form, *values))


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

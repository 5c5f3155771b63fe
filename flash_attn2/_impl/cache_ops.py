"""The `torch.library` ops around a KV cache.

    flash_attn2::kvcache_forward          attention over the cache: (out, lse)
    flash_attn2::kvcache_append_forward   first writes new keys and values into it, in place

They have fake implementations and no derivatives. That an append and the attention after it are one
op makes their checks one list, on every path, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack

from flash_attn2._impl import backends, cache_checks, cache_launch, checks, observe
from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.cache_launch import Cache, New
from flash_attn2._impl.launch import Options, lse_shape
from flash_attn2.ops import _is_tensor, _library, register_vmap

_ops: Any = torch.ops.flash_attn2

Tensors = tuple[Tensor, Tensor]


def append_and_attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    num_splits: int,
    options: Options,
) -> Tensors:
    """Append `new`, where there is one, then attention over the cache: out and lse.

    Skips the dispatcher when nothing would observe the ops, as `autograd.forward` does.
    """
    if not torch.compiler.is_compiling():
        appended = () if new is None else (new.k, new.v, new.rotary_cos, new.rotary_sin)
        tensors = (
            *(q, k_cache, v_cache, options.alibi_slopes, options.sink, *appended),
            *(cache.cache_seqlens, cache.cache_batch_idx, cache.cache_leftpad, cache.block_table),
            *(cache.cu_seqlens_q, cache.cu_seqlens_k_new),
        )
        if observe.circumstances(tensors) in (observe.PLAIN, observe.DIFFERENTIATED):
            return _with_gradient(
                lambda: _append_and_attend(q, k_cache, v_cache, new, cache, num_splits, options),
                tensors,
                None if new is None else (k_cache, v_cache, *appended),
            )
        k_cache = _usable("k_cache", k_cache, new is not None)
        v_cache = _usable("v_cache", v_cache, new is not None)
        if new is not None:
            _refuse_vmap()
            _refuse_functional(
                {"q": q, "k_cache": k_cache, "v_cache": v_cache}
                | (new._asdict() | cache._asdict() | options._asdict())
            )
    arguments = (*cache, num_splits, *options_of_op(options))
    if new is None:
        return _ops.kvcache_forward(q, k_cache, v_cache, *arguments)  # type: ignore[no-any-return]
    return _ops.kvcache_append_forward(  # type: ignore[no-any-return]
        q, k_cache, v_cache, *new, *arguments
    )


def _usable(name: str, cache: Tensor, written: bool) -> Tensor:
    """The cache, in memory and as it stands there: views that only seem to hold other values
    cannot be written.
    """
    if not (cache._is_zerotensor() or cache.is_neg()):
        return cache
    if written:
        what = "a tensor of zeros without memory" if cache._is_zerotensor() else "a negated view"
        raise ValueError(f"{name} must be memory to write to where k is appended, got {what}")
    if cache.is_neg():
        return cache.resolve_neg()
    return torch.zeros_like(cache, memory_format=torch.contiguous_format)


def options_of_op(options: Options) -> tuple[Any, ...]:
    """Those that the ops take."""
    scale, window_left, window_right, softcap, slopes, sink, _, _ = options
    return scale, window_left, window_right, softcap, slopes, sink


def _append_and_attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    num_splits: int,
    options: Options,
) -> Tensors:
    """Of tensors that are as they seem, and in memory."""
    _check_shapes(q, k_cache, v_cache, new, cache, num_splits, options)
    checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    cache_checks.check_layout(k_cache, v_cache, backends.serving(q), written=new is not None)
    cache_checks.check_values(q, k_cache, cache, new)
    return cache_launch.append_and_attend(q, k_cache, v_cache, new, cache, num_splits, options)


def _check_shapes(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    num_splits: int,
    options: Options,
) -> None:
    """What needs no values: for fake tensors too."""
    cache_checks.check_cache(q, k_cache, v_cache, cache)
    cache_checks.check_attend(q, cache, num_splits, options)
    if new is not None:
        cache_checks.check_new(q, k_cache, new, cache)


# Derivatives, of which there are none.

_NO_GRADIENT = (
    "attention over a KV cache has no gradient: call it under torch.no_grad() or with detached "
    "tensors"
)


def _with_gradient(
    attend: Callable[[], Tensors], tensors: tuple[Any, ...], written: tuple[Any, ...] | None
) -> Tensors:
    """The results of `attend`; a backward pass through them raises NotImplementedError.

    `written` are the caches and what goes into them: a gradient could not follow it there.
    """
    if not torch.is_grad_enabled():
        return attend()
    inputs = [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]
    if not inputs:
        return attend()
    if written is not None and any(x is y for x in written for y in inputs):
        raise NotImplementedError(
            "attention over a KV cache has no gradient, but k, v, the cache or the rotary tables "
            "require grad, which what is written into the cache would lose: call it under "
            "torch.no_grad()"
        )
    if peek_interpreter_stack() is not None:
        raise NotImplementedError(_NO_GRADIENT)
    with torch.no_grad():
        results = attend()
    return _WithoutGradient.apply(results, *inputs)  # type: ignore[no-any-return, no-untyped-call]


def _refuse_vmap() -> None:
    interpreter: Any = peek_interpreter_stack()
    if interpreter is not None and interpreter.key() == TransformType.Vmap:
        raise NotImplementedError(
            "torch.vmap does not map an append to a KV cache: give the dimension to the batch"
        )


def _refuse_functional(arguments: dict[str, Any]) -> None:
    """Of torch.func.functionalize, which cannot replace the writes of an op."""
    for name, x in arguments.items():
        if type(x) is Tensor and torch._is_functional_tensor(x):
            raise NotImplementedError(
                f"{name} must not be a functional tensor where k is appended: "
                "torch.func.functionalize does not take an op that writes in place, as "
                "torch.compile does"
            )


class _WithoutGradient(torch.autograd.Function):
    """Connects results to the tensors that they depend on."""

    @staticmethod
    def forward(ctx: Any, results: Tensors, *inputs: Tensor) -> Tensors:
        ctx.shapes = [x.shape for x in inputs]
        return results

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> Any:
        # By an op, so that torch.compile can trace what only fails when it runs.
        return None, *(_ops.kvcache_no_gradient(grad_out, shape) for shape in ctx.shapes)


def _no_gradient_kernel(grad_out: Tensor, shape: Any) -> Tensor:
    raise NotImplementedError(_NO_GRADIENT)


def _no_gradient_fake(grad_out: Tensor, shape: Any) -> Tensor:
    return grad_out.new_empty(shape)


# The ops. The dispatcher leaves out trailing arguments that have their defaults.

Arguments = tuple[Tensor, Tensor, Tensor, New | None, Cache, int, Options]


def _arguments(*args: Any) -> Arguments:
    """Of kvcache_forward."""
    count = 3 + len(Cache._fields)
    return *args[:3], None, Cache(*args[3:count]), args[count], Options(*args[count + 1 :])


def _append_arguments(*args: Any) -> Arguments:
    """Of kvcache_append_forward."""
    count = 3 + len(New._fields)
    *tensors, _, cache, num_splits, options = _arguments(*args[:3], *args[count:])
    return *tensors, New(*args[3:count]), cache, num_splits, options  # type: ignore[return-value]


def _fake(*arguments: Any) -> Tensors:
    _check_shapes(*arguments)
    q = arguments[0]
    return q.new_empty(q.shape), q.new_empty(lse_shape(q), dtype=torch.float32)


_CACHE = """Tensor? cache_seqlens, SymInt? cache_seqlen, Tensor? cache_batch_idx,
    Tensor? cache_leftpad, Tensor? block_table, Tensor? cu_seqlens_q, SymInt? max_seqlen_q,
    Tensor? cu_seqlens_k_new, SymInt seqlen_new"""
_OPTIONS = """SymInt num_splits, float? softmax_scale=None, SymInt window_left=-1,
    SymInt window_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sink=None"""
_RESULT = "(Tensor out, Tensor lse)"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def _define(name: str, tensors: str, arguments_of: Callable[..., Arguments], written: int) -> None:
    """`written` counts the arguments, from k_cache on, that are the caches or go into them."""
    schema = f"{name}({tensors}, {_CACHE}, {_OPTIONS}) -> {_RESULT}"
    _library.define(" ".join(schema.split()), tags=_TAGS)
    op = getattr(_ops, name)
    needed = [x.name for x in op.default._schema.arguments if _is_tensor(x)]

    def require_given(args: tuple[Any, ...]) -> None:
        for argument, value in zip(needed, args, strict=False):  # they come first
            if value is None:  # which the dispatcher takes for a tensor
                require_tensor(argument, None)

    def kernel(*args: Any) -> Tensors:
        observe.refuse_tangents(args)  # inference mode skips the key Autograd
        require_given(args)
        arguments = arguments_of(*args)
        q, k_cache, v_cache, new, cache, _, options = arguments
        cache_checks.check_readable(q, k_cache, v_cache, new, cache, options)
        return _append_and_attend(*arguments)

    def autograd(*args: Any) -> Tensors:
        observe.refuse_tangents(args)
        require_given(args)
        if written:
            _usable("k_cache", args[1], True)
            _usable("v_cache", args[2], True)

        def attend() -> Tensors:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)  # type: ignore[no-any-return]

        return _with_gradient(attend, args, args[1 : 1 + written] if written else None)

    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(
        f"flash_attn2::{name}", lambda *args: _fake(*arguments_of(*args)), lib=_library
    )
    if not written:
        register_vmap(name)


_define("kvcache_forward", "Tensor q, Tensor k_cache, Tensor v_cache", _arguments, 0)
_define(
    "kvcache_append_forward",
    """Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor? rotary_cos,
        Tensor? rotary_sin, bool rotary_interleaved, bool q_advances""",
    _append_arguments,
    6,
)
_library.define("kvcache_no_gradient(Tensor grad_out, SymInt[] shape) -> Tensor", tags=_TAGS)
_library.impl("kvcache_no_gradient", _no_gradient_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("flash_attn2::kvcache_no_gradient", _no_gradient_fake, lib=_library)

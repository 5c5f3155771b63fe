"""The `torch.library` ops behind the public functions.

    flash_attn2::forward         dense  (batch, seqlen, num_heads, head_dim)
    flash_attn2::varlen_forward  packed (total, num_heads, head_dim) with cu_seqlens

Both return `(out, lse, rng_state)`; rng_state is (seed, offset) in int64, and empty without
dropout. They have fake implementations, so torch.compile, export and meta tensors work, and an
autograd key that refuses to run where a gradient would be needed.

The functions `forward` and `varlen_forward` skip the dispatcher, which costs more time than the
rest of a small call, when nothing would observe the op: plain eager tensors, no gradient, no mode,
no transform, no tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import _checks, _launch
from flash_attn2._launch import Options, Packing, Result

# Order and defaults of the fields of Options.
_OPTIONS = """float? softmax_scale=None, SymInt window_left=-1, SymInt window_right=-1,
    float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sink=None, float dropout_p=0.0"""
_RESULT = "(Tensor out, Tensor lse, Tensor rng_state)"
_SCHEMAS = {
    "forward": f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> {_RESULT}",
    "varlen_forward": f"""(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k,
        Tensor? seqused_k, SymInt max_seqlen_q, SymInt max_seqlen_k, {_OPTIONS}) -> {_RESULT}""",
}
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    torch.Tag.needs_fixed_stride_order,
    torch.Tag.nondeterministic_seeded,
)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Attention of dense tensors: out, lse, rng_state (None or empty without dropout)."""
    if torch.compiler.is_compiling() or _observed(q, k, v, options):
        return _ops.forward(q, k, v, *options)  # type: ignore[no-any-return]
    return _dense(q, k, v, options)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options) -> Result:
    """Attention of packed tensors: out, lse, rng_state (None or empty without dropout)."""
    if torch.compiler.is_compiling() or _observed(q, k, v, options):
        return _ops.varlen_forward(q, k, v, *packing, *options)  # type: ignore[no-any-return]
    return _varlen(q, k, v, packing, options)


def _observed(q: Tensor, k: Tensor, v: Tensor, options: Options) -> bool:
    """Whether something else than a plain eager call of the kernel might be going on."""
    if (
        not (q.is_cpu or q.is_cuda)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._len_torch_function_stack() != 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return True
    grad_enabled = torch.is_grad_enabled()
    for tensor in (q, k, v, options.alibi_slopes, options.sink):
        if tensor is None:
            continue
        if type(tensor) is not Tensor or tensor.is_neg():
            return True
        if grad_enabled and tensor.requires_grad:
            return True
    return False


def _dense(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    _checks.check_dense(q, k, v, options.alibi_slopes, options.sink)
    _checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    return _launch.dense(q, k, v, options)


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options) -> Result:
    _checks.check_varlen(q, k, v, packing, options.alibi_slopes, options.sink)
    _checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    _checks.check_lengths(q, k, packing)
    return _launch.varlen(q, k, v, packing, options)


# Implementations of the ops. Trailing arguments that have their defaults are left out by the
# dispatcher; Options fills them in.


def _forward_kernel(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return _without_none(_dense(q, k, v, Options(*options)))


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
    options = Options(*values)
    _checks.check_dense(q, k, v, options.alibi_slopes, options.sink)
    batch, seqlen_q, num_heads, _ = q.shape
    return _fake_result(q, (batch, num_heads, seqlen_q), options)


def _varlen_forward_kernel(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
    packing, options = _packing_and_options(values)
    return _without_none(_varlen(q, k, v, packing, options))


def _varlen_forward_fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> tuple[Tensor, ...]:
    packing, options = _packing_and_options(values)
    _checks.check_varlen(q, k, v, packing, options.alibi_slopes, options.sink)
    total_q, num_heads, _ = q.shape
    return _fake_result(q, (num_heads, total_q), options)


def _packing_and_options(values: tuple[Any, ...]) -> tuple[Packing, Options]:
    split = len(Packing._fields)
    return Packing(*values[:split]), Options(*values[split:])


def _without_none(result: Result) -> tuple[Tensor, ...]:
    out, lse, rng_state = result
    return out, lse, out.new_empty(0, dtype=torch.int64) if rng_state is None else rng_state


def _fake_result(q: Tensor, lse_shape: tuple[int, ...], options: Options) -> tuple[Tensor, ...]:
    return (
        q.new_empty(q.shape),
        q.new_empty(lse_shape, dtype=torch.float32),
        q.new_empty(2 if options.dropout_p > 0 else 0, dtype=torch.int64),
    )


def _refuse_gradients(name: str) -> Callable[..., Any]:
    def autograd(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args
        ):
            raise NotImplementedError(
                f"flash_attn2::{name} got an input that requires grad, and this release computes "
                "the forward pass only: backward comes with release 0.2. Call it under "
                "torch.no_grad(), or detach its inputs."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(_ops, name)(*args)

    return autograd


_library: Any = torch.library.Library("flash_attn2", "DEF")  # type: ignore[no-untyped-call]
_ops: Any = torch.ops.flash_attn2
for _name, _kernel, _fake in (
    ("forward", _forward_kernel, _forward_fake),
    ("varlen_forward", _varlen_forward_kernel, _varlen_forward_fake),
):
    _library.define(_name + _SCHEMAS[_name], tags=_TAGS)
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    _library.impl(_name, _refuse_gradients(_name), "Autograd")
    torch.library.register_fake(f"flash_attn2::{_name}", _fake, lib=_library)

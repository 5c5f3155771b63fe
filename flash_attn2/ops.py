"""The `torch.library` ops.

    flash_attn2::forward, flash_attn2::backward                 dense tensors
    flash_attn2::varlen_forward, flash_attn2::varlen_backward   packed sequences, with cu_seqlens

Forward returns `(out, lse, rng_state)`; rng_state is (seed, offset) in int64, and empty without
dropout. Backward returns the gradients of q, k, v and sink, empty for those that are None. Inputs
may share a tensor (`launch.unpacked`), and then so do their gradients. All four have fake
implementations, so torch.compile, export and meta tensors work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from flash_attn2._impl import checks
from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.autograd import (
    Attention,
    FirstDerivatives,
    Tensors,
    apply,
    attend,
    checked,
    checked_results,
    differentiate,
    one_by_one,
    require_different_randomness,
    to_autocast_dtype,
    without_none,
)
from flash_attn2._impl.launch import Options, Packing, Saved, lse_shape
from flash_attn2._impl.observe import refuse_tangents
from flash_attn2._impl.tensors import require_readable, require_strided

# The ops. Their implementations take (tensors, packing, options).


def _forward_kernel(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    q, k, v = inputs
    return without_none(attend(q, k, v, packing, options), torch.int64)


def _forward_fake(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    q, k, v = inputs
    q, _, _ = checked(q, k, v, packing, options)
    return (
        q.new_empty(q.shape),
        q.new_empty(lse_shape(q), dtype=torch.float32),
        q.new_empty(2 if options.dropout_p > 0 else 0, dtype=torch.int64),
    )


def _forward_autograd(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    _refuse_transforms()
    return without_none(apply(Attention, *inputs, packing, options), torch.int64)


def _called(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[str, str, str]:
    """What callers call these inputs, of which one may hold several."""
    return "qkv" if k is None else "q", "kv" if v is None else "k", "v"


def _refuse_transforms() -> None:
    if peek_interpreter_stack() is not None:
        raise NotImplementedError(
            "torch.func differentiates the functions of flash_attn2 in eager mode, not their ops"
        )


def _backward_kernel(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    grad_out, grad_lse, *rest = inputs
    saved = Saved(*rest)
    q, k = checked_results(grad_out, grad_lse, saved, packing, options)
    checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)
    if packing is not None:
        checks.check_lengths(q, k, packing)
    return without_none(differentiate(grad_out, grad_lse, saved, packing, options))


def _backward_fake(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    grad_out, grad_lse, *rest = inputs
    saved = Saved(*rest)
    checked_results(grad_out, grad_lse, saved, packing, options)
    like = (*saved[:3], options.sink)
    return without_none([None if x is None else x.new_empty(x.shape) for x in like])


def _backward_autograd(inputs: Sequence[Any], packing: Packing | None, options: Options) -> Tensors:
    _refuse_transforms()
    return apply(FirstDerivatives, *inputs, packing, options)  # type: ignore[no-any-return]


class _Pass(NamedTuple):
    """What the dense and the packed op of one direction share."""

    tensors: str
    num_tensors: int
    result: str
    tags: tuple[torch.Tag, ...]
    kernel: Callable[..., Tensors]
    fake: Callable[..., Tensors]
    autograd: Callable[..., Tensors]


_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_PASSES = {
    "forward": _Pass(
        "Tensor q, Tensor? k, Tensor? v",
        3,
        "(Tensor out, Tensor lse, Tensor rng_state)",
        (*_TAGS, torch.Tag.nondeterministic_seeded),
        _forward_kernel,
        _forward_fake,
        _forward_autograd,
    ),
    "backward": _Pass(
        """Tensor? grad_out, Tensor? grad_lse, Tensor q, Tensor? k, Tensor? v, Tensor out,
            Tensor lse, Tensor? rng_state""",
        2 + len(Saved._fields),
        "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_sink)",
        _TAGS,
        _backward_kernel,
        _backward_fake,
        _backward_autograd,
    ),
}
_PACKING = """Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? seqused_k, SymInt max_seqlen_q,
    SymInt max_seqlen_k"""
_OPTIONS = """float? softmax_scale=None, SymInt window_left=-1, SymInt window_right=-1,
    float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sink=None, float dropout_p=0.0,
    bool deterministic=False"""

_library: Any = torch.library.Library("flash_attn2", "DEF")  # type: ignore[no-untyped-call]
_ops: Any = torch.ops.flash_attn2


def _is_tensor(argument: Any) -> bool:
    """Whether an argument of an op is a tensor, and not an optional one."""
    return isinstance(argument.type, torch.TensorType)


def _define(name: str, direction: _Pass, packing: str) -> None:
    begin = direction.num_tensors
    end = begin + (len(Packing._fields) if packing else 0)
    arguments = ", ".join(filter(None, (direction.tensors, packing, _OPTIONS)))
    _library.define(f"{name}({arguments}) -> {direction.result}", tags=direction.tags)
    op = getattr(_ops, name)

    names = [argument.name for argument in op.default._schema.arguments]
    at = names.index("q")
    needed = [i for i, argument in enumerate(op.default._schema.arguments) if _is_tensor(argument)]

    def require_given(args: tuple[Any, ...]) -> None:
        for i in needed:
            if args[i] is None:  # which the dispatcher takes for a tensor
                require_tensor(names[i], None)

    def kernel(*args: Any) -> Tensors:
        refuse_tangents(args)  # inference mode skips the key Autograd
        require_given(args)
        require_readable([*names[:at], *_called(*args[at : at + 3]), *names[at + 3 :]], args)
        return with_kernel(*args)

    def fake(*args: Any) -> Tensors:
        require_given(args)
        for name, value in zip(names, args, strict=False):
            if isinstance(value, Tensor):
                require_strided(name, value)
        return with_fake(*args)

    def implementation(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        # The dispatcher leaves out trailing arguments that have their defaults.
        return lambda *args: function(
            args[:begin], Packing(*args[begin:end]) if packing else None, Options(*args[end:])
        )

    with_gradient = implementation(direction.autograd)
    with_kernel = implementation(direction.kernel)
    with_fake = implementation(direction.fake)

    def autograd(*args: Any) -> Tensors:
        refuse_tangents(args)
        require_given(args)
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return with_gradient(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)  # type: ignore[no-any-return]

    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"flash_attn2::{name}", fake, lib=_library)
    register_vmap(name)


def register_vmap(name: str) -> None:
    """One call for each element. Before torch 2.5, which cannot be told, torch does so itself."""
    if not hasattr(torch.library, "register_vmap"):
        return
    op = getattr(_ops, name)
    arguments = [argument.name for argument in op.default._schema.arguments]

    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        refuse_tangents(args)
        options = dict(zip(arguments, args, strict=False))
        require_different_randomness(info, options.get("dropout_p", 0.0))
        return one_by_one(op, info, in_dims, args)

    torch.library.register_vmap(f"flash_attn2::{name}", vmap, lib=_library)


def _define_autocast(name: str, key: str, device_type: str) -> None:
    op = getattr(_ops, name)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*args: Any) -> Tensors:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*to_autocast_dtype(device_type, *args[:3]), *args[3:])  # type: ignore[no-any-return]

    _library.impl(name, autocast, key)


for _prefix, _packing in (("", ""), ("varlen_", _PACKING)):
    for _name, _direction in _PASSES.items():
        _define(_prefix + _name, _direction, _packing)
    for _device_type, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _define_autocast(f"{_prefix}forward", _key, _device_type)

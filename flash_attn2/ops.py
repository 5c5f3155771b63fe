"""The `torch.library` ops.

    flash_attn2::forward, flash_attn2::backward                 dense tensors
    flash_attn2::bias_backward                                  the gradients of their biases
    flash_attn2::varlen_forward, flash_attn2::varlen_backward   packed sequences, with cu_seqlens
    flash_attn2::kvcache_forward                                attention over a cache
    flash_attn2::kvcache_append_forward                         first writes new keys and values
                                                                into it, in place

Forward returns `(out, lse, rng_state)`, over a cache `(out, lse)`; rng_state is (seed, offset) in
int64, and empty without dropout. Backward returns the gradients of q, k, v and sink, empty for
those that are None; bias_backward returns those of bias and relative_bias, empty for those that
are not asked for. Inputs may share a tensor: without v, k holds keys and values, without k, q
holds all three; and then so do their gradients. Over a cache there is no gradient, and k without v
is appended to keys whose leading columns are the values. All have fake implementations, so
torch.compile, export and meta tensors work.

That an append and the attention after it are one op makes their checks one list, on every path,
before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from flash_attn2._impl import no_gradient
from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.autograd import (
    Attention,
    FirstDerivatives,
    Tensors,
    one_by_one,
    require_different_randomness,
    to_autocast_dtype,
    without_none,
)
from flash_attn2._impl.block_mask import require_unmapped
from flash_attn2._impl.checks import check_results
from flash_attn2._impl.forms import BIASES, FORMS, Form, checked, run
from flash_attn2._impl.observe import refuse_tangents
from flash_attn2._impl.options import check_numbers
from flash_attn2._impl.problem import BiasGradient, Gradient, Problem, lse_shape, out_shape
from flash_attn2._impl.schema import Signature
from flash_attn2._impl.tensors import require_readable, require_strided

_library: Any = torch.library.Library("flash_attn2", "DEF")  # type: ignore[no-untyped-call]
_ops: Any = torch.ops.flash_attn2

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_RESULTS = "(Tensor out, Tensor lse, Tensor rng_state)"
_CACHE_RESULTS = "(Tensor out, Tensor lse)"
_GRADIENTS = "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_sink)"

_BIAS_GRADIENTS = "(Tensor grad_bias, Tensor grad_relative_bias)"

Implementation = Callable[..., Tensors]


def _check_numbers(p: Problem) -> None:
    options = p.options
    check_numbers(options.dropout.drop_prob, options.softmax_scale, options.score_mod.softcap)


# Implementations take the flat arguments of an op.


def _forward_kernel(form: Form, *args: Any) -> Tensors:
    p = form.signature.unflatten(args)
    _check_numbers(p)
    results = run(form, p)
    return results[:2] if form.over_cache else without_none(results, torch.int64)


def _forward_fake(form: Form, *args: Any) -> Tensors:
    p = checked(form, form.signature.unflatten(args))
    q, v = p.q, p.v
    assert v is not None
    results = q.new_empty(out_shape(q, v)), q.new_empty(lse_shape(q), dtype=torch.float32)
    if form.over_cache:
        return results
    return *results, q.new_empty(2 if p.options.dropout.drop_prob > 0 else 0, dtype=torch.int64)


def _forward_autograd(form: Form, *args: Any) -> Tensors:
    _refuse_transforms()
    results = Attention.apply(form, *form.signature.completed(args))  # type: ignore[no-untyped-call]
    return without_none(results, torch.int64)


def _backward_kernel(form: Form, *args: Any) -> Tensors:
    gradient = _gradient(form, args)
    p = checked(form, gradient.forward)
    check_results(gradient)
    _check_numbers(p)
    if form.check_values is not None:
        form.check_values(p)
    return without_none(form.backward(gradient), like=p.q)


def _backward_fake(form: Form, *args: Any) -> Tensors:
    gradient = _gradient(form, args)
    checked(form, gradient.forward)
    check_results(gradient)
    p = gradient.forward
    like: tuple[Tensor | None, ...] = p.q, p.k, p.v, p.options.sink
    if isinstance(gradient, BiasGradient):
        _, _, bias, relative_bias = p.options.score_mod
        like = (
            bias if gradient.of_bias else None,
            relative_bias if gradient.of_relative_bias else None,
        )
    grads = [None if x is None else x.new_empty(x.shape) for x in like]
    return without_none(grads, like=p.q)


def _backward_autograd(form: Form, *args: Any) -> Tensors:
    assert form.backward_signature is not None
    _refuse_transforms()
    return FirstDerivatives.apply(form, *form.backward_signature.completed(args))  # type: ignore[no-any-return, no-untyped-call]


def _gradient(form: Form, args: Sequence[Any]) -> Gradient | BiasGradient:
    assert form.backward_signature is not None
    gradient: Gradient | BiasGradient = form.backward_signature.unflatten(args)
    return gradient


def _refuse_transforms() -> None:
    if peek_interpreter_stack() is not None:
        raise NotImplementedError(
            "torch.func differentiates the functions of flash_attn2 in eager mode, not their ops"
        )


def _called(names: Sequence[str], args: Sequence[Any]) -> list[str]:
    """What callers call these arguments: a tensor may hold several."""
    named = dict(zip(names, args, strict=False))
    joint = {}
    if "k" in named and "k_cache" not in named:
        joint = {"q": "qkv"} if named["k"] is None else {"k": "kv"} if named["v"] is None else {}
    return [joint.get(name, name) for name in names]


def _define(
    form: Form,
    name: str,
    signature: Signature[Any],
    result: str,
    tags: tuple[torch.Tag, ...],
    implement: Implementation,
    fake: Implementation,
    differentiate: Implementation | None,
) -> None:
    """`differentiate`: None where there is no gradient."""
    _library.define(f"{name}({signature.declaration}) -> {result}", tags=tags)
    op, names = getattr(_ops, name), signature.names
    schema = op.default._schema.arguments
    needed = [i for i, x in enumerate(schema) if isinstance(x.type, torch.TensorType)]

    def require_given(args: tuple[Any, ...]) -> None:
        for i in needed:
            if args[i] is None:  # which the dispatcher takes for a tensor
                require_tensor(names[i], None)

    def kernel(*args: Any) -> Tensors:
        refuse_tangents(args)  # inference mode skips the key Autograd
        require_given(args)
        require_readable(_called(names, args), args)
        return implement(form, *args)

    def faked(*args: Any) -> Tensors:
        require_given(args)
        for argument, value in zip(names, args, strict=False):
            if isinstance(value, Tensor):
                require_strided(argument, value)
        return fake(form, *args)

    def below(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def autograd(*args: Any) -> Tensors:
        refuse_tangents(args)
        require_given(args)
        if differentiate is None:
            p = signature.unflatten(args)
            written = no_gradient.written(p)
            if written:
                no_gradient.usable("k_cache", p.k, True)
                no_gradient.usable("v_cache", p.v, True)
            return no_gradient.with_gradient(lambda: below(*args), args, written)
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return differentiate(form, *args)
        return below(*args)  # type: ignore[no-any-return]

    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"flash_attn2::{name}", faked, lib=_library)
    if not any(x.alias_info is not None and x.alias_info.is_write for x in schema):
        _register_vmap(name, names)


def _register_vmap(name: str, names: Sequence[str]) -> None:
    """One call for each element. Before torch 2.5, which cannot be told, torch does so itself."""
    if not hasattr(torch.library, "register_vmap"):
        return
    op = getattr(_ops, name)

    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        refuse_tangents(args)
        options = dict(zip(names, args, strict=False))
        require_different_randomness(info, options.get("dropout_p", 0.0))
        require_unmapped(names, in_dims)
        return one_by_one(op, info, in_dims, args)

    torch.library.register_vmap(f"flash_attn2::{name}", vmap, lib=_library)


def _define_autocast(name: str, key: str, device_type: str) -> None:
    op = getattr(_ops, name)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(*args: Any) -> Tensors:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*to_autocast_dtype(device_type, *args[:3]), *args[3:])  # type: ignore[no-any-return]

    _library.impl(name, autocast, key)


def _define_backward(form: Form, result: str) -> None:
    assert form.backward_op is not None
    assert form.backward_signature is not None
    _define(
        form,
        form.backward_op,
        form.backward_signature,
        result,
        _TAGS,
        _backward_kernel,
        _backward_fake,
        _backward_autograd,
    )


for _form in FORMS:
    _no_gradient = _form.backward_op is None
    _define(
        _form,
        _form.op,
        _form.signature,
        _CACHE_RESULTS if _no_gradient else _RESULTS,
        _TAGS if _no_gradient else (*_TAGS, torch.Tag.nondeterministic_seeded),
        _forward_kernel,
        _forward_fake,
        None if _no_gradient else _forward_autograd,
    )
    if _form.backward_op is None:
        continue
    _define_backward(_form, _GRADIENTS)
    for _device_type, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _define_autocast(_form.op, _key, _device_type)

_define_backward(BIASES, _BIAS_GRADIENTS)
_library.define("kvcache_no_gradient(Tensor grad_out, SymInt[] shape) -> Tensor", tags=_TAGS)
_library.impl("kvcache_no_gradient", no_gradient.refuse, "CompositeExplicitAutograd")
torch.library.register_fake(
    "flash_attn2::kvcache_no_gradient", no_gradient.refuse_fake, lib=_library
)

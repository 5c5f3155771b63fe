"""Calls over a KV cache have no gradient: what happens where one is asked for, or transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack

from flash_attn2._impl.forms import Form, run
from flash_attn2._impl.problem import Problem
from flash_attn2._impl.quantised import written_scales

_NO_GRADIENT = (
    "attention over a KV cache has no gradient: call it under torch.no_grad() or with detached "
    "tensors"
)
_ops: Any = torch.ops.flash_attn2  # defined in ops.py

Results = tuple[Tensor, Tensor]  # out, lse


def attend(form: Form, p: Problem) -> Results:
    """Of tensors some of which require grad."""
    return with_gradient(lambda: run(form, p)[:2], form.signature.tensors(p), written(p))


def written(p: Problem) -> tuple[Tensor | None, ...]:
    """The caches that a call writes to, and what goes into them."""
    if p.append is None:
        return ()
    new_k, new_v, (cos, sin, _), _ = p.append
    return p.k, p.v, new_k, new_v, cos, sin, *written_scales(p)


def with_gradient(
    attend: Callable[[], Results], tensors: Sequence[Any], written: Sequence[Tensor | None]
) -> Results:
    """The results of `attend`; a backward pass through them raises NotImplementedError.

    A gradient could not follow what is `written`.
    """
    if not torch.is_grad_enabled():
        return attend()
    inputs = [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]
    if not inputs:
        return attend()
    if any(x is y for x in written for y in inputs):
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


def for_op(form: Form, p: Problem) -> Problem:
    """As the op takes it, when something observes the call."""
    is_written = p.append is not None
    p = p._replace(
        k=usable("k_cache", p.k, is_written),  # type: ignore[arg-type]
        v=usable("v_cache", p.v, is_written),  # type: ignore[arg-type]
    )
    if is_written:
        _refuse_vmap()
        _refuse_functional(form, p)
    return p


def usable(name: str, cache: Tensor, written: bool) -> Tensor:
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


def _refuse_vmap() -> None:
    interpreter: Any = peek_interpreter_stack()
    if interpreter is not None and interpreter.key() == TransformType.Vmap:
        raise NotImplementedError(
            "torch.vmap does not map an append to a KV cache: give the dimension to the batch"
        )


def _refuse_functional(form: Form, p: Problem) -> None:
    """Of torch.func.functionalize, which cannot replace the writes of an op."""
    for name, x in zip(form.signature.names, form.signature.flatten(p), strict=True):
        if type(x) is Tensor and torch._is_functional_tensor(x):
            raise NotImplementedError(
                f"{name} must not be a functional tensor where k is appended: "
                "torch.func.functionalize does not take an op that writes in place, as "
                "torch.compile does"
            )


class _WithoutGradient(torch.autograd.Function):
    """Connects results to the tensors that they depend on."""

    @staticmethod
    def forward(ctx: Any, results: Results, *inputs: Tensor) -> Results:
        ctx.shapes = [x.shape for x in inputs]
        return results

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> Any:
        # By an op, so that torch.compile can trace what only fails when it runs.
        return None, *(_ops.kvcache_no_gradient(grad_out, shape) for shape in ctx.shapes)


def refuse(grad_out: Tensor, shape: Any) -> Tensor:
    """The kernel of kvcache_no_gradient."""
    raise NotImplementedError(_NO_GRADIENT)


def refuse_fake(grad_out: Tensor, shape: Any) -> Tensor:
    """And what it would return."""
    return grad_out.new_empty(shape)

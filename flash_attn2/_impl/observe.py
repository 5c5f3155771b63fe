"""What goes on around a call: who has to see the op, and what differentiates it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

from flash_attn2._impl.tensors import SURELY_MEMORY, has_memory

UNOBSERVED, DIFFERENTIATED, TRANSFORMED, OBSERVED = range(4)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record a call with these tensors."""
    return is_grad_enabled() and any(x.requires_grad for x in tensors)


def circumstances(tensors: tuple[Tensor | None, ...], memory: bool = True) -> int:
    """Of a call with these tensors, q first. When in doubt, something observes the op.

    NotImplementedError where forward-mode differentiation goes through them. Without `memory`, for
    native code that refuses tensors without memory itself.
    """
    # At a level of forward-mode differentiation, a tangent must not get lost.
    if forward_ad._current_level >= 0:
        refuse_tangents(tensors)
    transform: Any = peek_interpreter_stack()
    if transform is not None:
        functionalized = transform.key() == TransformType.Functionalize
        return OBSERVED if functionalized else TRANSFORMED
    q = tensors[0]
    assert q is not None
    if (
        not (q.is_cpu or q.is_cuda)
        or _len_torch_dispatch_stack() != 0
        or _len_torch_function_stack() != 0
        or _get_tracing_state() is not None
        or _profiler_enabled()
    ):
        return OBSERVED
    around, grad_enabled = UNOBSERVED, is_grad_enabled()
    try:
        for tensor in tensors:
            if tensor is None:
                continue
            if (type(tensor) is not Tensor and type(tensor) is not Parameter) or tensor.is_neg():
                return OBSERVED
            if grad_enabled and tensor.requires_grad:
                around = DIFFERENTIATED
            if memory and tensor.data_ptr() < SURELY_MEMORY and not has_memory(tensor):
                return OBSERVED
    except RuntimeError:  # no storage
        return OBSERVED
    return around


def in_memory(tensors: tuple[Tensor | None, ...]) -> bool:
    """False for what only the dispatcher can read: zero, functional, batched, sparse tensors.

    And for tensors whose memory was freed, which the kernels of the ops refuse.
    """
    try:
        for tensor in tensors:
            if tensor is None or tensor.data_ptr() >= SURELY_MEMORY:
                continue
            if not has_memory(tensor):
                return False
    except RuntimeError:  # no storage
        return False
    return True


def ordinary() -> bool:
    """Whether tensors made now are what they seem: nothing traces, fakes or transforms them."""
    return not (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack() != 0
        or _get_tracing_state() is not None
        or peek_interpreter_stack() is not None
    )


def is_ordinary(t: Tensor) -> bool:
    """Whether this is a plain tensor in memory, that may be kept for later calls."""
    return type(t) is Tensor and not t.is_meta and not torch._is_functional_tensor(t)


# Forward-mode differentiation: dual tensors, torch.func.jvp, jacfwd, linearize.


def has_tangent(tensors: Iterable[Any]) -> bool:
    """Whether some of these carry a tangent at the current level, in whatever grad mode."""
    if forward_ad._current_level < 0:
        return False
    transform: Any = peek_interpreter_stack()
    if torch.is_inference_mode_enabled():
        # There, torch drops tangents silently. Inside of torch.func and of modes it cannot say
        # whether there are any.
        if transform is not None:
            return True
        try:
            with forward_ad._set_fwd_grad_enabled(True):
                return _any_tangent(tensors)
        except RuntimeError:
            return True
    if transform is not None and transform.key() == TransformType.Vmap:
        return False  # tangents are inside of what vmap maps, and seen when it has unwrapped them
    return _any_tangent(tensors)


def _any_tangent(tensors: Iterable[Any]) -> bool:
    return any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        for x in tensors
    )


def refuse_tangents(tensors: Iterable[Any]) -> None:
    """NotImplementedError if `has_tangent`."""
    if has_tangent(tensors):
        raise no_forward_mode()


def no_forward_mode() -> NotImplementedError:
    return NotImplementedError(
        "flash_attn2 has no forward-mode derivative (jvp, jacfwd, dual tensors), but an argument "
        "has a tangent: use reverse mode (vjp, jacrev, backward), or detach the argument"
    )

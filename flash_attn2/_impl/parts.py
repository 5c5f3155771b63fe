"""Calls on parts of the rows of dense sequences (`Problem.positions`), and calls that add to what
others have left, as context parallelism makes them.

Arguments have been accepted by checks of the whole call. Sums are in float32, or in float64 of
float64 tensors; the lse that goes with them is in float64, since what is added up is relative to
it. Under a block mask, CUDA kernels take queries from one of its blocks on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl import backends, launch, widths
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.lower import lower, with_addresses
from flash_attn2._impl.problem import Gradient, Problem


def require_kernels(q: Tensor, v: Tensor) -> None:
    """TypeError or NotImplementedError where the backend of q has no kernels for such tensors."""
    backend = backends.serving(q)
    backend.dtype_name(q.dtype)
    if backend.aligned:
        widths.require_built(backend, q.shape[-1], v.shape[-1])


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of partial results of tensors of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge(p: Problem, out: Tensor, lse: Tensor) -> None:
    """Attention over the keys of a call, merged into `out` (batch, seqlen_q, num_heads, head_dim_v)
    and `lse` (batch, num_heads, seqlen_q, float64, contiguous), results over other keys or 0 and
    -inf."""
    if p.q.numel() == 0 or p.k.numel() == 0:  # type: ignore[union-attr]
        return
    backend = backends.serving(p.q)
    head_dim = p.q.shape[-1]
    p = launch.readable_problem(p, backend, over_cache=False)
    sums = _addable(out, p.v, backend)
    problem = lower(
        *(p, backend.dtype_name(p.q.dtype), sums, lse, p.options.dropout.rng_state, head_dim)
    )
    backend.run(backend.module.forward, problem, p.q.device)
    _put_back(sums, out)


def add_gradients(gradient: Gradient, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> None:
    """Adds the gradients of a call to sums shaped like q, k and v.

    The problem has the final out. Its lse is in float32 where the call has all keys, and the final
    one in float64 where it has some.
    """
    grad_out, grad_lse, p = gradient
    if p.q.numel() == 0 or p.k.numel() == 0:  # type: ignore[union-attr]
        return
    backend = backends.serving(p.q)
    head_dim = p.q.shape[-1]
    p = launch.readable_problem(p, backend, over_cache=False)
    assert p.out is not None
    assert p.lse is not None
    out, lse = launch.readable(p.out, backend), p.lse.contiguous()
    incoming = launch.readable_incoming(grad_out, grad_lse, out, backend)  # held until it has run
    grads = grad_q, grad_k, grad_v
    sums = [_addable(x, of, backend) for x, of in zip(grads, p[:3], strict=True)]
    problem: dict[str, Any] = {
        **incoming,
        **dict(zip(("grad_q", "grad_k", "grad_v"), sums, strict=True)),
    }
    with_addresses(problem)
    problem["accumulates"] = True
    problem["deterministic"] = launch.is_deterministic(p.options.deterministic)
    problem["forward"] = lower(
        *(p, backend.dtype_name(p.q.dtype), out, lse, p.options.dropout.rng_state, head_dim)
    )
    backend.run(backend.module.backward, problem, p.q.device)
    for x, own in zip(grads, sums, strict=True):
        _put_back(own, x)


def _addable(sums: Tensor, like: Tensor | None, backend: Backend) -> Tensor:
    """`sums`, or a copy of them as kernels of the backend add to: rows as wide as those of `like`,
    for CUDA kernels in pairs of columns."""
    assert like is not None
    fits = sums.shape[-1] == like.shape[-1] and (
        not backend.aligned
        or (
            sums.stride(-1) == 1
            and sums.data_ptr() % (2 * sums.element_size()) == 0
            and all(stride % 2 == 0 for stride in sums.stride()[:-1])
        )
    )
    if fits:
        return sums
    copy = sums.new_zeros(*sums.shape[:-1], like.shape[-1])
    copy[..., : sums.shape[-1]] = sums
    return copy


def _put_back(sums: Tensor, to: Tensor) -> None:
    if sums is not to:
        to.copy_(sums[..., : to.shape[-1]])

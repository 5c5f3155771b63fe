"""Calls of these kernels with the tensors, results and layouts of PyTorch's own flash kernels.

An override stands below autograd: what arrives are plain tensors, and no gradient is asked for.
Which calls are taken follows from what a forward and its backward pass both get, so that both go to
the same kernel, whatever was activated or deactivated between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2._impl import backends, launch, widths
from flash_attn2._impl.forms import DENSE, VARLEN, differentiate, run
from flash_attn2._impl.options import make_options
from flash_attn2._impl.problem import (
    MAX_FACTOR,
    MIN_FACTOR,
    NO_PAGES,
    NO_SEQLENS,
    Gradient,
    Options,
    Problem,
    SeqLens,
)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # float64 wants its lse in float64

Lengths = tuple[Tensor, Tensor, int, int]  # cu_seqlens of queries and keys, and their bounds
Grads = tuple[Tensor, Tensor, Tensor]


def takes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    causal: bool,
    square: bool,
    scale: float | None,
) -> bool:
    """Whether these kernels serve tensors (..., head_dim) with PyTorch's options; `square`: causal
    masks are the same from both corners."""
    head_dim = q.shape[-1]
    return (
        dropout_p == 0
        and (square or not causal)
        and (scale is None or scale == 0 or MIN_FACTOR <= scale <= MAX_FACTOR)
        and q.dtype in _DTYPES
        and q.dtype == k.dtype == v.dtype
        and head_dim == k.shape[-1] == v.shape[-1]
        and 1 <= head_dim <= min(widths.widest(q))
    )


def options_of(causal: bool, scale: float | None, window: tuple[int, int] = (-1, -1)) -> Options:
    """Those that PyTorch's flash kernels have."""
    return make_options(0.0, scale, causal, window, 0.0, None, None)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    lengths: Lengths | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse, of dense (batch, seqlen, num_heads, head_dim) or packed tensors.

    `out` is memory for the former, in any layout.
    """
    usable = out if out is not None and launch.is_readable(out, backends.serving(q)) else None
    form = DENSE if lengths is None else VARLEN
    result, lse, _ = run(form, _problem(q, k, v, options, lengths, usable))
    if out is None or usable is not None:
        return result, lse
    return out.copy_(result), lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: Options,
    lengths: Lengths | None = None,
) -> Grads:
    """Gradients of q, k and v, contiguous."""
    form = DENSE if lengths is None else VARLEN
    p = _problem(q, k, v, options, lengths, out, lse)
    grad_q, grad_k, grad_v, _ = differentiate(form, Gradient(grad_out, None, p))
    assert grad_q is not None
    assert grad_k is not None
    assert grad_v is not None
    return grad_q, grad_k, grad_v


def heads_first_forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """out, with the strides of query, and lse, of (batch, num_heads, seqlen, head_dim) tensors."""
    out = torch.empty_like(query)
    q, k, v, out_rows = (x.transpose(1, 2) for x in (query, key, value, out))
    _, lse = forward(q, k, v, options_of(causal, scale), out=out_rows)
    return out, lse


def heads_first_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None,
) -> Grads:
    """Gradients of query, key and value, with the strides of (batch, seqlen, num_heads, ...)."""
    d_out, q, k, v, o = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
    grads = backward(d_out, q, k, v, o, lse, options_of(causal, scale))
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    lengths: Lengths | None,
    out: Tensor | None,
    lse: Tensor | None = None,
) -> Problem:
    seqs_q = seqs_k = NO_SEQLENS
    if lengths is not None:
        cu_seqlens_q, cu_seqlens_k, longest_q, longest_k = lengths
        seqs_q = SeqLens(cu_seqlens_q, None, longest_q)
        seqs_k = SeqLens(cu_seqlens_k, None, longest_k)
    return Problem(q, k, v, seqs_q, seqs_k, options, NO_PAGES, out=out, lse=lse)

"""Tensors -> one call of a native module.

The functions take arguments that `checks` has accepted, bring inputs into a layout that the
backend reads, allocate the results, and hand over pointers, shapes and strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, contiguous_format

from flash_attn2._impl import backends
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.tensors import address

# Results are allocated through these names, so that tests can poison them.
_empty = torch.empty
_empty_like = torch.empty_like

Result = tuple[Tensor, Tensor, Tensor | None]
Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Options(NamedTuple):
    """What both layouts take beside their tensors; see `functional` for the meaning."""

    softmax_scale: float | None = None  # None: 1 / sqrt(head_dim)
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sink: Tensor | None = None
    dropout_p: float = 0.0
    deterministic: bool = False


class Packing(NamedTuple):
    """Where the sequences of packed tensors lie, and upper bounds of their lengths."""

    cu_seqlens_q: Tensor  # int32 (batch + 1,)
    cu_seqlens_k: Tensor  # int32 (batch + 1,)
    seqused_k: Tensor | None  # int32 (batch,): keys that count
    max_seqlen_q: int
    max_seqlen_k: int


class Saved(NamedTuple):
    """Inputs and results of a forward pass: the tensors that its backward pass reads."""

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    out: Tensor
    lse: Tensor
    rng_state: Tensor | None


def unpacked(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values.

    Without v, k is (..., 2, num_heads_kv, head_dim) and holds keys and values. Without k, q is
    (..., 3, num_heads, head_dim) and holds all three.
    """
    if k is None:
        return q.unbind(-3)  # type: ignore[return-value]
    if v is None:
        return q, *k.unbind(-3)  # type: ignore[return-value]
    return q, k, v


def dense(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """(batch, seqlen, num_heads, head_dim) -> out, lse (batch, num_heads, seqlen_q), rng_state."""
    lse = dense_lse(q)
    plain_options = _plain_options(options)
    if plain_options is not None:
        out = plain(q, k, v, lse, plain_options)
        if out is not None:
            return out, lse, None
    return _forward(q, k, v, lse, options, _dense_lengths(q, k))


def lse_shape(q: Tensor) -> tuple[int, ...]:
    """Of the lse of dense or packed queries."""
    *batch, rows, num_heads, _ = q.shape
    return (*batch, num_heads, rows)


def dense_lse(q: Tensor) -> Tensor:
    """Memory for the lse of queries (batch, seqlen_q, num_heads, head_dim)."""
    batch, seqlen_q, num_heads, _ = q.shape
    return _empty(batch, num_heads, seqlen_q, dtype=torch.float32, device=q.device)


def varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options) -> Result:
    """Packed (total, num_heads, head_dim) -> out, lse (num_heads, total_q), rng_state."""
    lse = _empty(lse_shape(q), dtype=torch.float32, device=q.device)
    packing = _contiguous_packing(packing)
    out, lse, rng_state = _forward(q, k, v, lse, options, _packed_lengths(q, k, packing))
    if packing.cu_seqlens_q.is_cpu and (end := int(packing.cu_seqlens_q[-1])) < q.shape[0]:
        out[end:] = 0
        lse[:, end:] = -torch.inf
    return out, lse, rng_state


def dense_backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, saved: Saved, options: Options
) -> Gradients:
    """Gradients of q, k, v (each as `saved` holds it, None where that is None) and of the sink.

    Of grad_out and grad_lse, None is zeros.
    """
    lengths = _dense_lengths(saved.q, saved.q if saved.k is None else saved.k)
    return _backward(grad_out, grad_lse, saved, options, lengths, _empty_like)


def varlen_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    packing: Packing,
    options: Options,
) -> Gradients:
    """As `dense_backward`; zeros for rows of no sequence and for keys past seqused_k."""
    packing = _contiguous_packing(packing)
    lengths = _packed_lengths(saved.q, saved.q if saved.k is None else saved.k, packing)
    return _backward(grad_out, grad_lse, saved, options, lengths, torch.zeros_like)


# Plain calls: the native module looks at the tensors and checks everything for itself, and takes
# what needs neither a copy nor an error message (csrc/bindings/direct_call.h). Otherwise nothing
# happens. A tiny call takes half the time or less this way.

# dropout_p, softmax_scale, causal, window_size, softcap as in `functional`.
PlainOptions = tuple[float, float | None, bool, tuple[int, int], float]


def plain(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor | None, options: PlainOptions
) -> Tensor | None:
    """`out` of dense tensors, or None. Fills `lse`, where given. Nothing need be checked before."""
    backend = backends.serving(q)
    if backend.forward_direct is None:
        return None
    try:
        out = _empty_like(q, memory_format=contiguous_format)
    except RuntimeError:  # nested, sparse: the checks say so
        return None
    pointer = 0 if lse is None else lse.data_ptr()
    done = backend.forward_direct((q, k, v, out), pointer, options, torch.get_num_threads())
    return out if done else None


def plain_backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, saved: Saved, options: Options
) -> Gradients | None:
    """`dense_backward`, or None. Nothing need be checked before."""
    q, k, v, out, lse, _ = saved
    backend = backends.serving(q)
    plain_options = _plain_options(options)
    if (
        backend.backward_direct is None
        or plain_options is None
        or grad_out is None
        or grad_lse is not None
        or k is None
        or v is None
    ):
        return None
    grad_q, grad_k, grad_v = (_empty_like(x, memory_format=contiguous_format) for x in (q, k, v))
    done = backend.backward_direct(
        (q, k, v, out),
        lse,
        (grad_out, grad_q, grad_k, grad_v),
        plain_options,
        _deterministic(options),
        torch.get_num_threads(),
    )
    return (grad_q, grad_k, grad_v, None) if done else None


def _plain_options(options: Options) -> PlainOptions | None:
    scale, left, right, softcap, slopes, sink, dropout_p, _ = options
    if slopes is not None or sink is not None or dropout_p > 0:
        return None
    return dropout_p, scale, False, (left, right), softcap


def _deterministic(options: Options) -> bool:
    return options.deterministic or torch.are_deterministic_algorithms_enabled()


def draw_rng_state(device: torch.device) -> Tensor:
    """(seed, offset) as int64 (2,), from torch's default generator of `device`."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor, options: Options, lengths: dict[str, int]
) -> Result:
    backend = backends.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    head_dim = q.shape[-1]
    q, k, v = _readable(q, backend), _readable(k, backend), _readable(v, backend)
    out = _empty_like(q, memory_format=contiguous_format)
    options = _contiguous_options(options)
    rng_state = draw_rng_state(q.device) if options.dropout_p > 0 else None
    if lse.numel() != 0:
        problem = _problem(q, k, v, out, lse, rng_state, options, head_dim, lengths)
        problem["dtype"] = dtype_name
        backend.forward(problem, q.device)
    return _without_padding(out, head_dim), lse, rng_state


def _backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Saved,
    options: Options,
    lengths: dict[str, int],
    allocate: Callable[..., Tensor],
) -> Gradients:
    q, k, v = unpacked(*saved[:3])
    backend = backends.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    head_dim = q.shape[-1]
    q, k, v, out = (_readable(x, backend) for x in (q, k, v, saved.out))
    options = _contiguous_options(options)

    def gradient_of(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        if x.shape[-1] != q.shape[-1]:
            x = x[..., :1].expand(*x.shape[:-1], q.shape[-1])  # with the padding of q
        return allocate(x, memory_format=contiguous_format)

    grads = [gradient_of(x) for x in saved[:3]]
    grad_sink = None if options.sink is None else allocate(options.sink)
    lse, rng_state = saved.lse.contiguous(), _contiguous(saved.rng_state)
    if lse.numel() != 0:
        if grad_out is None:
            grad_out = q.new_zeros(q.shape[-1]).expand(q.shape)
        else:
            grad_out = _readable(grad_out.to(q.dtype), backend)
        grad_q, grad_k, grad_v = unpacked(*grads)  # type: ignore[arg-type]
        problem = _problem(q, k, v, out, lse, rng_state, options, head_dim, lengths)
        problem.update(
            dtype=dtype_name,
            grad_out=_strided(grad_out),
            grad_q=_strided(grad_q),
            grad_k=_strided(grad_k),
            grad_v=_strided(grad_v),
            deterministic=_deterministic(options),
        )
        if grad_lse is not None:
            grad_lse = grad_lse.to(torch.float32).contiguous()
            problem["grad_lse"] = address(grad_lse)
        if grad_sink is not None:
            problem["grad_sink"] = address(grad_sink)
        backend.backward(problem, q.device)
    else:
        for grad in (*grads, grad_sink):
            if grad is not None:
                grad.zero_()
    grads = [None if grad is None else _without_padding(grad, head_dim) for grad in grads]
    return *grads, grad_sink  # type: ignore[return-value]


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rng_state: Tensor | None,
    options: Options,
    head_dim: int,
    lengths: dict[str, int],
) -> dict[str, Any]:
    """The fields that forward and backward share, but for the dtype.

    Tensors are laid out as the backend reads them; head_dim is that before any padding.
    """
    scale, window_left, window_right, softcap, slopes, sink, dropout_p, _ = options
    shape = q.shape
    problem: dict[str, Any] = {
        **lengths,
        "num_heads": shape[-2],
        "num_heads_kv": k.shape[-2],
        "head_dim": shape[-1],
        "q": _strided(q),
        "k": _strided(k),
        "v": _strided(v),
        "out": _strided(out),
        "lse": address(lse),
        "softmax_scale": head_dim**-0.5 if scale is None else scale,
        "window_left": window_left,
        "window_right": window_right,
        "softcap": softcap,
    }
    if slopes is not None:
        problem["alibi_slopes"] = address(slopes)
        problem["alibi_batch_stride"] = slopes.stride(0) if slopes.ndim == 2 else 0
    if sink is not None:
        problem["sink"] = address(sink)
    if rng_state is not None:
        problem["drop_prob"] = dropout_p
        problem["rng_state"] = address(rng_state)
    return problem


def _dense_lengths(q: Tensor, k: Tensor) -> dict[str, int]:
    shape = q.shape
    return {"batch": shape[0], "seqlen_q": shape[1], "seqlen_k": k.shape[1]}


def _packed_lengths(q: Tensor, k: Tensor, packing: Packing) -> dict[str, int]:
    cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k = packing
    lengths = {
        "batch": cu_seqlens_q.shape[0] - 1,
        "seqlen_q": max_seqlen_q,
        "seqlen_k": max_seqlen_k,
        "total_q": q.shape[0],
        "total_k": k.shape[0],
        "cu_seqlens_q": address(cu_seqlens_q),
        "cu_seqlens_k": address(cu_seqlens_k),
    }
    if seqused_k is not None:
        lengths["seqused_k"] = address(seqused_k)
    return lengths


def _strided(t: Tensor) -> tuple[int, ...]:
    """(data_ptr, batch_stride, row_stride, head_stride) in elements."""
    strides = t.stride()
    batch_stride = strides[0] if len(strides) == 4 else 0
    return address(t), batch_stride, strides[-3], strides[-2]


# Pointers are taken after these, from tensors that the caller holds until the kernel has run.


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _contiguous_options(options: Options) -> Options:
    if options.alibi_slopes is None and options.sink is None:
        return options
    return options._replace(
        alibi_slopes=_contiguous(options.alibi_slopes), sink=_contiguous(options.sink)
    )


def _contiguous_packing(packing: Packing) -> Packing:
    cu_seqlens_q, cu_seqlens_k, seqused_k, *bounds = packing
    if (
        cu_seqlens_q.is_contiguous()
        and cu_seqlens_k.is_contiguous()
        and (seqused_k is None or seqused_k.is_contiguous())
    ):
        return packing
    return Packing(
        cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), _contiguous(seqused_k), *bounds
    )


def _readable(t: Tensor, backend: Backend) -> Tensor:
    """`t` in rows that the backend reads, a copy where it has others.

    Every tensor whose rows a kernel reads goes through here, and what comes out is so whatever
    strides or address came in: the last stride is 1, and for CUDA kernels each row starts on 16
    bytes and has a head_dim that is padded with zeros to a multiple of 8.
    """
    if _is_readable(t, backend):
        return t
    padding = -t.shape[-1] % 8 if backend.aligned else 0
    if padding == 0:
        copy = t.clone(memory_format=contiguous_format)
    else:  # not F.pad, which may keep the order of the strides
        head_dim = t.shape[-1]
        copy = t.new_zeros(*t.shape[:-1], head_dim + padding)
        copy[..., :head_dim] = t
    assert _is_readable(copy, backend), (copy.shape, copy.stride(), copy.data_ptr())
    return copy


def _is_readable(t: Tensor, backend: Backend) -> bool:
    strides = t.stride()
    if strides[-1] != 1 or not backend.aligned:
        return strides[-1] == 1
    return (
        t.shape[-1] % 8 == 0
        and t.data_ptr() % 16 == 0
        and all(stride % 8 == 0 for stride in strides[:-1])
    )


def _without_padding(t: Tensor, head_dim: int) -> Tensor:
    return t if t.shape[-1] == head_dim else t[..., :head_dim].contiguous()

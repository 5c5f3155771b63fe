"""Tensors -> one call of a native module.

The functions take arguments that `_checks` has accepted, bring inputs into a layout that the
backend reads, allocate the results, and hand over pointers, shapes and strides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flash_attn2 import _backend

# Results are allocated through these names, so that tests can poison them.
_empty = torch.empty
_empty_like = torch.empty_like

Result = tuple[Tensor, Tensor, Tensor | None]


class Options(NamedTuple):
    """What both layouts take beside their tensors; see `functional` for the meaning."""

    softmax_scale: float | None = None  # None: 1 / sqrt(head_dim)
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sink: Tensor | None = None
    dropout_p: float = 0.0


class Packing(NamedTuple):
    """Where the sequences of packed tensors lie, and upper bounds of their lengths."""

    cu_seqlens_q: Tensor  # int32 (batch + 1,)
    cu_seqlens_k: Tensor  # int32 (batch + 1,)
    seqused_k: Tensor | None  # int32 (batch,): keys that count
    max_seqlen_q: int
    max_seqlen_k: int


def dense(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """(batch, seqlen, num_heads, head_dim) -> out, lse (batch, num_heads, seqlen_q), rng_state."""
    batch, seqlen_q, num_heads, _ = q.shape
    lse = _empty(batch, num_heads, seqlen_q, dtype=torch.float32, device=q.device)
    lengths = {"batch": batch, "seqlen_q": seqlen_q, "seqlen_k": k.shape[1]}
    return _forward(q, k, v, lse, options, lengths)


def varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options) -> Result:
    """Packed (total, num_heads, head_dim) -> out, lse (num_heads, total_q), rng_state."""
    total_q, num_heads, _ = q.shape
    lse = _empty(num_heads, total_q, dtype=torch.float32, device=q.device)
    cu_seqlens_q = packing.cu_seqlens_q.contiguous()
    cu_seqlens_k = packing.cu_seqlens_k.contiguous()
    lengths = {
        "batch": cu_seqlens_q.shape[0] - 1,
        "seqlen_q": packing.max_seqlen_q,
        "seqlen_k": packing.max_seqlen_k,
        "total_q": total_q,
        "total_k": k.shape[0],
        "cu_seqlens_q": cu_seqlens_q.data_ptr(),
        "cu_seqlens_k": cu_seqlens_k.data_ptr(),
    }
    if (seqused_k := packing.seqused_k) is not None:
        seqused_k = seqused_k.contiguous()
        lengths["seqused_k"] = seqused_k.data_ptr()
    out, lse, rng_state = _forward(q, k, v, lse, options, lengths)
    if cu_seqlens_q.is_cpu and (end := int(cu_seqlens_q[-1])) < total_q:
        out[end:] = 0
        lse[:, end:] = -torch.inf
    return out, lse, rng_state


def draw_rng_state(device: torch.device) -> Tensor:
    """(seed, offset) as int64 (2,), from torch's default generator of `device`."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor, options: Options, lengths: dict[str, int]
) -> Result:
    softmax_scale, window_left, window_right, softcap, slopes, sink, dropout_p = options
    backend = _backend.serving(q)
    if (dtype_name := backend.dtype_names.get(q.dtype)) is None:
        allowed = " or ".join(backend.dtype_names.values())
        raise TypeError(f"q must be {allowed} on the {backend.name} backend, got {q.dtype}")
    *_, num_heads, head_dim = q.shape
    if backend.aligned:
        q, k, v = _aligned(q), _aligned(k), _aligned(v)
    else:
        q, k, v = _unit_stride(q), _unit_stride(k), _unit_stride(v)
    out = _empty_like(q, memory_format=torch.contiguous_format)

    problem: dict[str, Any] = {
        **lengths,
        "dtype": dtype_name,
        "num_heads": num_heads,
        "num_heads_kv": k.shape[-2],
        "head_dim": out.shape[-1],
        "q": _strided(q),
        "k": _strided(k),
        "v": _strided(v),
        "out": _strided(out),
        "lse": lse.data_ptr(),
        "softmax_scale": head_dim**-0.5 if softmax_scale is None else softmax_scale,
        "window_left": window_left,
        "window_right": window_right,
        "softcap": softcap,
    }
    if slopes is not None:
        slopes = slopes.contiguous()
        problem["alibi_slopes"] = slopes.data_ptr()
        problem["alibi_batch_stride"] = slopes.stride(0) if slopes.ndim == 2 else 0
    if sink is not None:
        sink = sink.contiguous()
        problem["sink"] = sink.data_ptr()
    rng_state = None
    if dropout_p > 0:
        rng_state = draw_rng_state(q.device)
        problem["drop_prob"] = dropout_p
        problem["rng_state"] = rng_state.data_ptr()

    if lse.numel() != 0:
        backend.forward(problem, q.device)
    if out.shape[-1] != head_dim:
        out = out[..., :head_dim].contiguous()
    return out, lse, rng_state


def _strided(t: Tensor) -> tuple[int, ...]:
    """(data_ptr, batch_stride, row_stride, head_stride) in elements."""
    strides = t.stride()
    batch_stride = strides[0] if len(strides) == 4 else 0
    return t.data_ptr(), batch_stride, strides[-3], strides[-2]


def _unit_stride(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.clone(memory_format=torch.contiguous_format)


def _aligned(t: Tensor) -> Tensor:
    """`t` with rows that start on 16 bytes: head_dim padded with zeros to a multiple of 8."""
    if padding := -t.shape[-1] % 8:
        return F.pad(t, (0, padding))
    *outer, last = t.stride()
    if last == 1 and t.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in outer):
        return t
    return t.clone(memory_format=torch.contiguous_format)

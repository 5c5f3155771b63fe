"""A KV cache -> calls of a native module: `append`, then `forward`.

As in `_launch`, arguments have been accepted by checks. The cache itself is never copied: it is
read, and written, where it lies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flash_attn2 import _backend, _launch
from flash_attn2._launch import Options


class Cache(NamedTuple):
    """Which rows of a cache, of the queries and of new keys belong to each sequence."""

    cache_seqlens: Tensor | None  # int32 (batch,): rows of the cache before the call
    cache_seqlen: int | None  # likewise, of every sequence; without either: all there are
    cache_batch_idx: Tensor | None  # int32 (batch,)
    cache_leftpad: Tensor | None  # int32 (batch,): rows in front that do not count
    block_table: Tensor | None  # int32 (batch, pages of a sequence)
    cu_seqlens_q: Tensor | None  # int32 (batch + 1,), of packed queries
    max_seqlen_q: int | None  # None: the kernels get a bound that is known without waiting
    cu_seqlens_k_new: Tensor | None  # int32 (batch + 1,), of packed new keys and values
    seqlen_new: int  # rows of every sequence that dense ones have; 0: none


class New(NamedTuple):
    """Keys and values to append, and how they turn."""

    k: Tensor
    v: Tensor
    rotary_cos: Tensor | None
    rotary_sin: Tensor | None
    rotary_interleaved: bool
    q_advances: bool  # query i turns by its own position, not all by that of the first


def batch_size(q: Tensor, cache: Cache) -> int:
    """Sequences of a call."""
    return q.shape[0] if cache.cu_seqlens_q is None else cache.cu_seqlens_q.shape[0] - 1


def capacity(k_cache: Tensor, cache: Cache) -> int:
    """Rows that a sequence can have."""
    columns = 1 if cache.block_table is None else cache.block_table.shape[1]
    return 0 if k_cache.shape[0] == 0 else columns * k_cache.shape[1]


def append(q: Tensor, k_cache: Tensor, v_cache: Tensor, new: New, cache: Cache) -> Tensor | None:
    """Write new keys and values into the cache. Returns the rotated q, None without rotation."""
    backend = _backend.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    readable = _launch._aligned if backend.aligned else _launch._unit_stride
    k, v, cos, sin = readable(new.k), readable(new.v), new.rotary_cos, new.rotary_sin
    cache = _readable_cache(cache, q)
    num_heads, head_dim = q.shape[-2:]
    problem: dict[str, Any] = {
        **_lengths(q, k_cache, cache),
        "dtype": dtype_name,
        "num_heads": num_heads,
        "num_heads_kv": k_cache.shape[-2],
        "head_dim": head_dim,
        "k": _launch._strided(k_cache),
        "v": _launch._strided(v_cache),
        "new_k": _launch._strided(k),
        "new_v": _launch._strided(v),
    }
    if cache.cu_seqlens_k_new is None:
        problem["seqlen_new"] = cache.seqlen_new
    else:
        problem["seqlen_new"] = _longest(cache.cu_seqlens_k_new, k.shape[0])
        problem["cu_seqlens_new"] = cache.cu_seqlens_k_new.data_ptr()
        problem["total_new"] = k.shape[0]
    rotated_q = None
    if cos is not None and sin is not None:
        q, cos, sin = readable(q), cos.contiguous(), sin.contiguous()
        rotated_q = _launch._empty_like(q, memory_format=torch.contiguous_format)
        problem.update(
            q=_launch._strided(q),
            rotated_q=_launch._strided(rotated_q),
            q_advances=new.q_advances,
            rotary_cos=cos.data_ptr(),
            rotary_sin=sin.data_ptr(),
            rotary_rows=cos.shape[0],
            rotary_dim=2 * cos.shape[1],
            rotary_interleaved=new.rotary_interleaved,
        )
    torch.autograd.graph.increment_version((k_cache, v_cache))
    if k.numel() != 0 or (rotated_q is not None and rotated_q.numel() != 0):
        backend.append(problem, q.device)
    return rotated_q


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache: Cache, num_splits: int, options: Options
) -> tuple[Tensor, Tensor]:
    """Attention over a cache, after any append: out, and lse as for dense or packed queries."""
    backend = _backend.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    q = _launch._aligned(q) if backend.aligned else _launch._unit_stride(q)
    cache, options = _readable_cache(cache, q), _launch._contiguous_options(options)
    *batch, rows, num_heads, head_dim = q.shape
    out = _launch._empty_like(q, memory_format=torch.contiguous_format)
    lse = _launch._empty(*batch, num_heads, rows, dtype=torch.float32, device=q.device)
    if lse.numel() != 0:
        lengths = _lengths(q, k_cache, cache)
        problem = _launch._problem(q, k_cache, v_cache, out, lse, None, options, head_dim, lengths)
        problem.update(dtype=dtype_name, num_splits=num_splits)
        if cache.cache_leftpad is not None:
            problem["leftpad_k"] = cache.cache_leftpad.data_ptr()
        _launch.run_forward(backend, problem, q.device)
    if cache.cu_seqlens_q is not None and q.is_cpu and (end := int(cache.cu_seqlens_q[-1])) < rows:
        out[end:] = 0
        lse[:, end:] = -torch.inf
    return out, lse


def _readable_cache(cache: Cache, q: Tensor) -> Cache:
    """With vectors that kernels can read."""
    contiguous = _launch._contiguous
    block_table, seqlens = cache.block_table, cache.cache_seqlens
    if block_table is not None and block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    if seqlens is None and cache.cache_seqlen is not None and cache.cu_seqlens_k_new is not None:
        seqlens = torch.full(
            (batch_size(q, cache),), cache.cache_seqlen, dtype=torch.int32, device=q.device
        )
    return cache._replace(
        cache_seqlens=contiguous(seqlens),
        cache_leftpad=contiguous(cache.cache_leftpad),
        block_table=block_table,
        cu_seqlens_q=contiguous(cache.cu_seqlens_q),
        cu_seqlens_k_new=contiguous(cache.cu_seqlens_k_new),
    )


def _lengths(q: Tensor, k_cache: Tensor, cache: Cache) -> dict[str, int]:
    """The fields of batch, lengths and pages that append and forward share."""
    lengths = {"batch": batch_size(q, cache), "seqlen_k": capacity(k_cache, cache)}
    if cache.cu_seqlens_q is None:
        lengths["seqlen_q"] = q.shape[1]
    else:
        if (longest := cache.max_seqlen_q) is None:
            longest = _longest(cache.cu_seqlens_q, q.shape[0])
        lengths["seqlen_q"] = longest
        lengths["total_q"] = q.shape[0]
        lengths["cu_seqlens_q"] = cache.cu_seqlens_q.data_ptr()
    if cache.cache_seqlens is not None:
        lengths["seqused_k"] = cache.cache_seqlens.data_ptr()
    elif cache.cache_seqlen is not None:
        lengths["seqlen_k"] = cache.cache_seqlen + cache.seqlen_new
    if cache.cu_seqlens_k_new is not None:
        lengths["cu_appended_k"] = cache.cu_seqlens_k_new.data_ptr()
    else:
        lengths["appended_k"] = cache.seqlen_new
    # Without pages, cache_batch_idx is a table of one page for each sequence.
    table = cache.cache_batch_idx if cache.block_table is None else cache.block_table
    if table is not None and lengths["seqlen_k"] != 0:
        num_pages, page_size, _, _ = k_cache.shape
        lengths["block_table"] = table.data_ptr()
        lengths["block_table_stride"] = table.stride(0)
        lengths["page_size"] = page_size
        lengths["num_pages"] = num_pages
    return lengths


def _longest(cu_seqlens: Tensor, total: int) -> int:
    """An upper bound of the lengths: exact in host memory, `total` where asking would wait."""
    if not cu_seqlens.is_cpu or cu_seqlens.shape[0] == 1:
        return total
    return min(max(0, int(cu_seqlens.diff().max())), total)

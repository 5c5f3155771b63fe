"""A KV cache -> calls of a native module: `append` where there are new keys, then `forward`.

As in `launch`, arguments have been accepted by checks. The cache itself is never copied: it is
read, and written, where it lies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl import backends, launch, overlap
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.checks import MAX_SEQLEN
from flash_attn2._impl.launch import Options
from flash_attn2._impl.tensors import address


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


def append_and_attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    num_splits: int,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Write `new` into the cache, then attention over it: out, and lse as for dense or packed q.

    Everything that can be refused, by the backend too, is so before the cache is written.
    """
    backend = backends.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    if new is not None:
        q, new, cache, options = _apart_from_caches(q, k_cache, v_cache, new, cache, options)
    q = launch._readable(q, backend)
    cache, options = _readable_cache(cache, q), launch._contiguous_options(options)
    lengths, appending = _lengths(q, k_cache, cache), None
    if new is not None:
        appending = _append_problem(backend, q, k_cache, v_cache, new, cache, lengths)
        if appending.rotated_q is not None:
            q = appending.rotated_q
    rows, _, head_dim = q.shape[-3:]
    out = launch._empty_like(q, memory_format=torch.contiguous_format)
    lse = launch._empty(launch.lse_shape(q), dtype=torch.float32, device=q.device)
    problem = launch._problem(q, k_cache, v_cache, out, lse, None, options, head_dim, lengths)
    problem.update(dtype=dtype_name, num_splits=num_splits)
    if cache.cache_leftpad is not None:
        problem["leftpad_k"] = address(cache.cache_leftpad)
    end = rows
    if cache.cu_seqlens_q is not None and q.is_cpu:
        end = int(cache.cu_seqlens_q[-1])

    if appending is not None and appending.has_rows:
        problem["append"] = appending.problem
    if lse.numel() != 0 or "append" in problem:
        backend.forward(problem, q.device)
    if appending is not None:  # held until here
        for tensor in (k_cache, v_cache):
            if not tensor.is_inference():  # those have no versions
                torch.autograd.graph.increment_version(tensor)
    if end < rows:
        out[end:] = 0
        lse[:, end:] = -torch.inf
    return out, lse


class _Append(NamedTuple):
    """An append that is ready to run."""

    problem: dict[str, Any]
    rotated_q: Tensor | None
    has_rows: bool
    held: tuple[Tensor | None, ...]  # tensors that the problem points to


def _append_problem(
    backend: Backend,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New,
    cache: Cache,
    lengths: dict[str, int],
) -> _Append:
    """q and cache are readable already."""
    k, v = launch._readable(new.k, backend), launch._readable(new.v, backend)
    cos, sin = new.rotary_cos, new.rotary_sin
    num_heads, head_dim = q.shape[-2:]
    problem: dict[str, Any] = {
        **lengths,
        "dtype": backend.dtype_name(q.dtype),
        "num_heads": num_heads,
        "num_heads_kv": k_cache.shape[-2],
        "head_dim": head_dim,
        "k": launch._strided(k_cache),
        "v": launch._strided(v_cache),
        "new_k": launch._strided(k),
        "new_v": launch._strided(v),
    }
    if cache.cu_seqlens_k_new is None:
        problem["seqlen_new"] = cache.seqlen_new
    else:
        problem["seqlen_new"] = _longest(cache.cu_seqlens_k_new, k.shape[0])
        problem["cu_seqlens_new"] = address(cache.cu_seqlens_k_new)
        problem["total_new"] = k.shape[0]
    rotated_q = None
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
        rotated_q = launch._empty_like(q, memory_format=torch.contiguous_format)
        problem.update(
            q=launch._strided(q),
            rotated_q=launch._strided(rotated_q),
            q_advances=new.q_advances,
            rotary_cos=address(cos),
            rotary_sin=address(sin),
            rotary_rows=cos.shape[0],
            rotary_dim=2 * cos.shape[1],
            rotary_interleaved=new.rotary_interleaved,
        )
    has_rows = k.numel() != 0 or (rotated_q is not None and rotated_q.numel() != 0)
    return _Append(problem, rotated_q, has_rows, (q, k, v, cos, sin))


def _apart_from_caches(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, new: New, cache: Cache, options: Options
) -> tuple[Tensor, New, Cache, Options]:
    """With copies of what shares memory with the caches, which are written before it is read."""
    (begin_k, end_k), (begin_v, end_v) = overlap.span(k_cache), overlap.span(v_cache)
    for x in (q, *new, *cache, *options):
        if isinstance(x, Tensor):
            begin, end = overlap.span(x)
            if (begin < end_k and begin_k < end) or (begin < end_v and begin_v < end):
                break
    else:
        return q, new, cache, options

    def apart(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        overlaps = (overlap.tensors_overlap(written, x) for written in (k_cache, v_cache))
        return x.clone() if any(overlaps) else x

    return apart(q), New(*map(apart, new)), Cache(*map(apart, cache)), Options(*map(apart, options))


def _readable_cache(cache: Cache, q: Tensor) -> Cache:
    """With vectors that kernels can read."""
    block_table, seqlens = cache.block_table, cache.cache_seqlens
    vectors = seqlens, cache.cache_leftpad, cache.cu_seqlens_q, cache.cu_seqlens_k_new
    if (
        all(x is None or x.is_contiguous() for x in vectors)
        and (block_table is None or block_table.stride(1) == 1)
        and (cache.cu_seqlens_k_new is None or seqlens is not None)
    ):
        return cache
    contiguous = launch._contiguous
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
        lengths["cu_seqlens_q"] = address(cache.cu_seqlens_q)
    if cache.cache_seqlens is not None:
        lengths["seqused_k"] = address(cache.cache_seqlens)
    elif cache.cache_seqlen is not None:
        lengths["seqlen_k"] = cache.cache_seqlen + cache.seqlen_new
    if cache.cu_seqlens_k_new is not None:
        lengths["cu_appended_k"] = address(cache.cu_seqlens_k_new)
    else:
        lengths["appended_k"] = cache.seqlen_new
    # Without pages, cache_batch_idx is a table of one page for each sequence.
    table = cache.cache_batch_idx if cache.block_table is None else cache.block_table
    if table is not None and lengths["seqlen_k"] != 0:
        num_pages, page_size, _, _ = k_cache.shape
        lengths["block_table"] = address(table)
        lengths["block_table_stride"] = table.stride(0)
        lengths["page_size"] = page_size
        lengths["num_pages"] = num_pages
    return lengths


def _longest(cu_seqlens: Tensor, total: int) -> int:
    """An upper bound of the lengths: exact in host memory, `total` where asking would wait."""
    if not cu_seqlens.is_cpu or cu_seqlens.shape[0] == 1:
        return min(total, MAX_SEQLEN)
    return min(max(0, int(cu_seqlens.diff().max())), total)

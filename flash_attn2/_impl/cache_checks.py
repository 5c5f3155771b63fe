"""Checks of calls over a KV cache that need no values, as `checks` makes them of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn2._impl import quantised
from flash_attn2._impl.checks import (
    FLOAT_DTYPES,
    check_device,
    check_head_counts,
    check_head_dim_v,
    check_heads,
    check_int32_vector,
    check_per_head,
    is_vector,
    per_head_fits,
    require_rows_of,
    too_long,
)
from flash_attn2._impl.problem import (
    MAX_HEAD_DIM,
    MAX_HEAD_DIM_V,
    MAX_SEQLEN,
    MAX_SPLITS,
    Append,
    Problem,
    batch_size,
    capacity,
)


def check_shapes(p: Problem) -> None:
    """Shapes, dtypes and devices: what needs no values, for fake tensors too."""
    if type(p.q) is Tensor and _fits(p) and (p.append is None or _append_fits(p, p.append)):
        return
    _check_cache(p)
    check_per_head(p, batch_size(p))
    check_splits(p.num_splits)
    if p.append is not None:
        _check_append(p, p.append)


def _fits(p: Problem) -> bool:
    """Whether `_check_cache` and the checks after it would surely pass."""
    q, k, v, seqs_q, seqs_k, _, (table, batch_idx, _), num_splits, _, scales, *_ = p
    assert k is not None
    assert v is not None
    shape_q, shape_k, shape_v, dtype, device = q.shape, k.shape, v.shape, q.dtype, q.device
    cu_q = seqs_q.cu_seqlens
    if not (
        len(shape_q) == (4 if cu_q is None else 3)
        and len(shape_k) == 4
        and (shape_v == shape_k or shape_v[:-1] == shape_k[:-1])
        and dtype is k.dtype is v.dtype
        and dtype in FLOAT_DTYPES
        and (scales is None or scales[0] is scales[1] is None)
        and device == k.device == v.device
        and 0 <= num_splits <= MAX_SPLITS
    ):
        return False
    rows_of_cache, page_size, num_heads_kv, head_dim = shape_k
    num_heads = shape_q[-2]
    if not (
        head_dim == shape_q[-1]
        and 1 <= head_dim <= MAX_HEAD_DIM
        and 1 <= shape_v[-1] <= MAX_HEAD_DIM_V
        and num_heads > 0 < num_heads_kv
        and num_heads % num_heads_kv == 0
    ):
        return False
    if cu_q is None:
        batch, rows = shape_q[:2]
        if rows > MAX_SEQLEN or seqs_k.cu_appended is not None:
            return False
    else:
        batch = cu_q.shape[0] - 1 if cu_q.ndim == 1 else -1
        if batch < 0 or not is_vector(cu_q, batch + 1, device):
            return False
    columns = 1
    if table is not None:
        if not (
            table.dtype is torch.int32
            and table.ndim == 2
            and table.shape[0] == batch
            and table.device == device
            and batch_idx is None
            and page_size != 0
        ):
            return False
        columns = table.shape[1]
    elif batch_idx is None and rows_of_cache < batch:
        return False
    used, leftpad, cu_new = seqs_k.seqused, seqs_k.leftpad, seqs_k.cu_appended
    return (
        columns * page_size <= MAX_SEQLEN
        and (used is None or is_vector(used, batch, device))
        and (leftpad is None or is_vector(leftpad, batch, device))
        and (batch_idx is None or is_vector(batch_idx, batch, device))
        and (cu_new is None or is_vector(cu_new, batch + 1, device))
        and (
            (p.options.sink is None and p.options.score_mod.alibi_slopes is None)
            or per_head_fits(p, batch)
        )
    )


def _append_fits(p: Problem, append: Append) -> bool:
    """Whether `_check_append` would surely pass, after `_fits`."""
    (new_k, new_v, (cos, sin, _), _), q, seqs_k = append, p.q, p.seqs_k
    assert p.k is not None
    assert p.v is not None
    shape, dtype, device = new_k.shape, q.dtype, q.device
    varlen = seqs_k.cu_appended is not None
    return (
        (seqs_k.seqused is not None or seqs_k.max_seqlen is not None)
        and len(shape) == (3 if varlen else 4)
        and shape[-2:] == p.k.shape[-2:]
        and (varlen or shape[0] == q.shape[0])
        and new_k.dtype is dtype
        and new_k.device == device
        and (
            new_v is None
            or (
                new_v.shape == (*shape[:-1], p.v.shape[-1])
                and new_v.dtype is dtype
                and new_v.device == device
            )
        )
        and seqs_k.appended <= MAX_SEQLEN
        and (cos is None) == (sin is None)
        and (cos is None or sin is None or _rotary_fits(q, cos, sin))
    )


def _rotary_fits(q: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return (
        cos.ndim == 2
        and cos.shape[0] != 0
        and 2 <= 2 * cos.shape[1] <= q.shape[-1]
        and sin.shape == cos.shape
        and cos.dtype is sin.dtype
        and (cos.dtype is q.dtype or cos.dtype is torch.float32)
        and cos.device == sin.device == q.device
    )


def check_together(name: str, tensor: Tensor | None, other_name: str, other: object) -> None:
    """That one of two tensors does not come without the other."""
    if (tensor is None) != (other is None):
        given, missing = (name, other_name) if other is None else (other_name, name)
        raise ValueError(f"{missing} must be given with {given}, got {missing}=None")


def _check_cache(p: Problem) -> None:
    """Shapes, dtypes and devices of queries, cache and lengths."""
    q, k_cache, v_cache, varlen = p.q, p.k, p.v, p.seqs_q.cu_seqlens is not None
    assert k_cache is not None
    assert v_cache is not None
    dims = "total_q" if varlen else "batch, seqlen_q"
    if q.ndim != dims.count(",") + 3:
        where = "" if varlen else "out"
        raise ValueError(
            f"q must be ({dims}, num_heads, head_dim) with{where} cu_seqlens_q, got shape "
            f"{tuple(q.shape)}"
        )
    if q.dtype not in FLOAT_DTYPES:
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {q.dtype}")
    if not varlen and too_long(q.shape[1]):
        raise ValueError(f"q must have at most {MAX_SEQLEN} rows of a sequence, got {q.shape[1]}")
    table = p.pages.block_table
    dims = "batch_cache, seqlen_cache" if table is None else "num_pages, page_size"
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must be ({dims}, num_heads_kv, head_dim), got shape {tuple(tensor.shape)}"
            )
        if tensor.dtype in quantised.CODE_NAMES:
            check_device(name, tensor, q.device)
        else:
            advice = f": create the cache with dtype={q.dtype}, or one of {quantised.ALLOWED}"
            _check_like_q(name, tensor, q, advice)
    if table is not None and k_cache.shape[1] == 0:
        raise ValueError("k_cache must have a page_size of at least 1, got 0")
    require_rows_of("v_cache", v_cache, "k_cache", k_cache)
    _check_cache_heads(q, k_cache)
    check_head_dim_v("v_cache", v_cache)
    _check_vectors(p)
    batch = batch_size(p)
    if table is None and p.pages.batch_idx is None and k_cache.shape[0] < batch:
        raise ValueError(
            f"k_cache must have a row for each of the {batch} sequences, or cache_batch_idx or "
            f"block_table must be given, got {k_cache.shape[0]} rows"
        )
    if too_long(most := capacity(k_cache, p.pages)):
        raise ValueError(
            f"k_cache must hold at most {MAX_SEQLEN} rows of a sequence, got room for {most}"
        )
    quantised.check_shapes(p)


def check_splits(num_splits: int) -> None:
    """The range that kernels take."""
    if not 0 <= num_splits <= MAX_SPLITS:
        raise ValueError(
            f"num_splits must be from 1 to {MAX_SPLITS}, or 0 to have it chosen, got {num_splits}"
        )


def check_seqlen(name: str, seqlen: int) -> None:
    """That a number of rows is one that ops and kernels can be told; others may bound it more."""
    if isinstance(seqlen, int) and not 0 <= seqlen <= MAX_SEQLEN:
        raise ValueError(f"{name} must be from 0 to {MAX_SEQLEN}, got {seqlen}")


def _check_append(p: Problem, append: Append) -> None:
    """Beside `_check_cache`: what an append takes."""
    q, k_cache, v_cache, seqs_k = p.q, p.k, p.v, p.seqs_k
    assert k_cache is not None
    assert v_cache is not None
    if seqs_k.seqused is None and seqs_k.max_seqlen is None:
        raise ValueError("cache_seqlens must say where the rows of k go, got None")
    varlen = seqs_k.cu_appended is not None
    for name, tensor, cache in (("k", append.new_k, k_cache), ("v", append.new_v, v_cache)):
        if tensor is None:  # `cache_values.check_layout` says whether it may be
            continue
        shape, heads = tensor.shape, cache.shape[-2:]
        if (
            len(shape) != (3 if varlen else 4)
            or shape[-2:] != heads
            or not (varlen or shape[0] == batch_size(p))
        ):
            dims = ("total_new",) if varlen else (batch_size(p), "seqlen_new")
            advice = _transposed(name, tensor, heads[0]) or _transposed(
                "k_cache", k_cache, shape[-2] if len(shape) > 1 else 0
            )
            raise ValueError(
                f"{name} must be ({', '.join(map(str, (*dims, *heads)))}), got shape "
                f"{tuple(shape)}{advice}"
            )
        _check_like_q(name, tensor, q)
    if append.new_v is not None:
        require_rows_of("v", append.new_v, "k", append.new_k)
    if too_long(seqs_k.appended):
        raise ValueError(f"k must have at most {MAX_SEQLEN} rows, got {seqs_k.appended}")
    cos, sin, _ = append.rotary
    check_together("rotary_cos", cos, "rotary_sin", sin)
    if cos is not None and sin is not None:
        _check_rotary(q, cos, sin)


def check_paged(p: Problem, table: Tensor) -> None:
    """Before `check_shapes`: what `flash_attn_varlen_func` takes with a block_table."""
    q, k, v, seqs_q, seqs_k = p.q, p.k, p.v, p.seqs_q, p.seqs_k
    cu_seqlens_q, longest_q = seqs_q.cu_seqlens, seqs_q.max_seqlen
    cu_seqlens_k, seqused_k, longest, *_ = seqs_k
    assert k is not None
    assert v is not None
    assert cu_seqlens_q is not None
    assert longest_q is not None
    assert longest is not None
    if k.ndim != 4 or k.shape[1] == 0:
        raise ValueError(
            "k must be (num_pages, page_size, num_heads_kv, head_dim) with block_table, "
            f"got shape {tuple(k.shape)}"
        )
    if q.ndim != 3:
        raise ValueError(f"q must be (total, num_heads, head_dim), got shape {tuple(q.shape)}")
    if k.dtype != q.dtype and q.dtype in FLOAT_DTYPES:
        _check_like_q("k", k, q, f": create the cache with dtype={q.dtype}")
    check_heads(q, k, v)
    _check_vector("cu_seqlens_q", cu_seqlens_q, None, q)
    batch = cu_seqlens_q.shape[0] - 1
    _check_vector("cu_seqlens_k", cu_seqlens_k, batch + 1, q)
    _check_vector("seqused_k", seqused_k, batch, q)
    _check_table(table, batch, q)
    check_seqlen("max_seqlen_q", longest_q)
    check_seqlen("max_seqlen_k", longest)


def _check_like_q(name: str, tensor: Tensor, q: Tensor, advice: str = "") -> None:
    if tensor.dtype != q.dtype:
        raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {tensor.dtype}{advice}")
    check_device(name, tensor, q.device)


def _check_cache_heads(q: Tensor, k_cache: Tensor) -> None:
    try:
        check_head_counts(q, k_cache, "k_cache", "v_cache")
    except ValueError as error:
        # Where the heads seem to come before the rows.
        num_heads, num_heads_kv = q.shape[-2], k_cache.shape[2]
        advice = ""
        if num_heads_kv != 0 and num_heads % num_heads_kv != 0:
            if (heads := k_cache.shape[1]) != 0 and num_heads % heads == 0:
                advice = _transposed("k_cache", k_cache, heads)
            elif q.ndim == 4 and q.shape[1] % num_heads_kv == 0:
                advice = _transposed("q", q, q.shape[1])
        raise ValueError(f"{error}{advice}") from None


def _transposed(name: str, tensor: Tensor, num_heads: int) -> str:
    """Advice where the heads seem to come before the rows, as in scaled_dot_product_attention."""
    if tensor.ndim != 4 or tensor.shape[1] != num_heads:
        return ""
    return f": if {name} is (batch, num_heads, seqlen, head_dim), pass {name}.transpose(1, 2)"


def _check_vectors(p: Problem) -> None:
    """The int32 tensors of a call."""
    q, seqs_k, pages = p.q, p.seqs_k, p.pages
    _check_vector("cu_seqlens_q", p.seqs_q.cu_seqlens, None, q)
    batch = batch_size(p)
    _check_vector("cu_seqlens_k_new", seqs_k.cu_appended, batch + 1, q)
    _check_vector("cache_seqlens", seqs_k.seqused, batch, q)
    _check_vector("cache_batch_idx", pages.batch_idx, batch, q)
    _check_vector("cache_leftpad", seqs_k.leftpad, batch, q)
    if seqs_k.cu_appended is not None and p.seqs_q.cu_seqlens is None:
        raise ValueError("cu_seqlens_k_new must come with cu_seqlens_q, got cu_seqlens_q=None")
    if pages.block_table is not None:
        if pages.batch_idx is not None:
            raise ValueError("block_table and cache_batch_idx must not both be given")
        _check_table(pages.block_table, batch, q)


def _check_vector(name: str, vector: Tensor | None, count: int | None, q: Tensor) -> None:
    """int32 (count,), on the device of q; without `count`, cu_seqlens of any batch."""
    if vector is None:
        return
    check_int32_vector(name, vector, q.device)
    if count is None and vector.shape[0] == 0:
        raise ValueError(f"{name} must have batch + 1 elements, got 0")
    if count is not None and vector.shape[0] != count:
        raise ValueError(f"{name} must have shape ({count},), got {tuple(vector.shape)}")


def _check_table(table: Tensor, batch: int, q: Tensor) -> None:
    if table.dtype != torch.int32:
        raise TypeError(f"block_table must be int32, got {table.dtype}")
    if table.ndim != 2 or table.shape[0] != batch:
        raise ValueError(
            f"block_table must be ({batch}, pages of a sequence), got shape {tuple(table.shape)}"
        )
    check_device("block_table", table, q.device)


def _check_rotary(q: Tensor, cos: Tensor, sin: Tensor) -> None:
    head_dim = q.shape[-1]
    if cos.ndim != 2 or cos.shape[0] == 0 or not 2 <= 2 * cos.shape[1] <= head_dim:
        raise ValueError(
            "rotary_cos must be (positions, rotary_dim / 2) with rotary_dim from 2 to the "
            f"head_dim, {head_dim}, got shape {tuple(cos.shape)}"
        )
    if sin.shape != cos.shape:
        raise ValueError(
            f"rotary_sin must have the shape of rotary_cos, {tuple(cos.shape)}, "
            f"got {tuple(sin.shape)}"
        )
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        if table.dtype not in (q.dtype, torch.float32):
            raise TypeError(
                f"{name} must be float32 or have the dtype of q, {q.dtype}, got {table.dtype}"
            )
        check_device(name, table, q.device)
    if sin.dtype != cos.dtype:
        raise TypeError(
            f"rotary_sin must have the dtype of rotary_cos, {cos.dtype}, got {sin.dtype}"
        )

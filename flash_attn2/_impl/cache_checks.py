"""Validation of the arguments around a KV cache, as `checks` does it for the others.

Values are checked where host memory holds them. On a GPU the kernels bound every access: reads
stay within the tensors, and what an append has no place for is not written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from flash_attn2._impl import checks, observe, overlap
from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.cache_launch import Cache, New, batch_size, capacity
from flash_attn2._impl.checks import MAX_SEQLEN
from flash_attn2._impl.launch import Options, Packing
from flash_attn2._impl.tensors import in_memory, require_readable

MAX_SPLITS = 128


def check_types(**tensors: Any) -> None:
    """That all are dense tensors, or None where optional: ops would refuse others in words of
    their own.
    """
    for name, value in tensors.items():
        if value is not None:
            require_tensor(name, value)


def check_together(name: str, tensor: Tensor | None, other_name: str, other: object) -> None:
    """That one of two tensors does not come without the other."""
    if (tensor is None) != (other is None):
        given, missing = (name, other_name) if other is None else (other_name, name)
        raise ValueError(f"{missing} must be given with {given}, got {missing}=None")


def check_readable(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    options: Options,
) -> None:
    """That all tensors are what kernels can read."""
    require_readable(("q", "k_cache", "v_cache"), (q, k_cache, v_cache))
    for values in (new, cache, options):
        if values is not None:
            require_readable(values._fields, values)


def check_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor, cache: Cache) -> None:
    """Shapes, dtypes and devices of queries, cache and lengths."""
    dims = "batch, seqlen_q" if cache.cu_seqlens_q is None else "total_q"
    if q.ndim != dims.count(",") + 3:
        where = "out" if cache.cu_seqlens_q is None else ""
        raise ValueError(
            f"q must be ({dims}, num_heads, head_dim) with{where} cu_seqlens_q, got shape "
            f"{tuple(q.shape)}"
        )
    if q.dtype not in checks._FLOAT_DTYPES:
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {q.dtype}")
    if cache.cu_seqlens_q is None and checks.too_long(q.shape[1]):
        raise ValueError(f"q must have at most {MAX_SEQLEN} rows of a sequence, got {q.shape[1]}")
    dims = "num_pages, page_size"
    if cache.block_table is None:
        dims = "batch_cache, seqlen_cache"
    for name, tensor in (("k_cache", k_cache), ("v_cache", v_cache)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must be ({dims}, num_heads_kv, head_dim), got shape {tuple(tensor.shape)}"
            )
        _check_like_q(name, tensor, q, f": create the cache with dtype={q.dtype}")
    if cache.block_table is not None and k_cache.shape[1] == 0:
        raise ValueError("k_cache must have a page_size of at least 1, got 0")
    if k_cache.shape != v_cache.shape:
        checks._require_head_dim("k_cache", k_cache, q)
        raise ValueError(
            f"v_cache must have the shape of k_cache, {tuple(k_cache.shape)}, "
            f"got {tuple(v_cache.shape)}"
        )
    _check_heads(q, k_cache)
    _check_vectors(q, cache)
    batch = batch_size(q, cache)
    if cache.block_table is None and cache.cache_batch_idx is None and k_cache.shape[0] < batch:
        raise ValueError(
            f"k_cache must have a row for each of the {batch} sequences, or cache_batch_idx or "
            f"block_table must be given, got {k_cache.shape[0]} rows"
        )
    if checks.too_long(most := capacity(k_cache, cache)):
        raise ValueError(
            f"k_cache must hold at most {MAX_SEQLEN} rows of a sequence, got room for {most}"
        )


def check_attend(q: Tensor, cache: Cache, num_splits: int, options: Options) -> None:
    """Beside `check_cache`: what attention takes."""
    checks._check_per_head(q, batch_size(q, cache), options.alibi_slopes, options.sink)
    check_splits(num_splits)


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


def check_new(q: Tensor, k_cache: Tensor, new: New, cache: Cache) -> None:
    """Beside `check_cache`: what an append takes."""
    if cache.cache_seqlens is None and cache.cache_seqlen is None:
        raise ValueError("cache_seqlens must say where the rows of k go, got None")
    heads, packed = k_cache.shape[-2:], cache.cu_seqlens_k_new is not None
    for name, tensor in (("k", new.k), ("v", new.v)):
        shape = tensor.shape
        if (
            len(shape) != (3 if packed else 4)
            or shape[-2:] != heads
            or not (packed or shape[0] == batch_size(q, cache))
        ):
            dims = ("total_new",) if packed else (batch_size(q, cache), "seqlen_new")
            advice = _transposed(name, tensor, heads[0]) or _transposed(
                "k_cache", k_cache, shape[-2] if len(shape) > 1 else 0
            )
            raise ValueError(
                f"{name} must be ({', '.join(map(str, (*dims, *heads)))}), got shape "
                f"{tuple(shape)}{advice}"
            )
        _check_like_q(name, tensor, q)
    if new.k.shape != new.v.shape:
        raise ValueError(
            f"v must have the shape of k, {tuple(new.k.shape)}, got {tuple(new.v.shape)}"
        )
    if checks.too_long(cache.seqlen_new):
        raise ValueError(f"k must have at most {MAX_SEQLEN} rows, got {cache.seqlen_new}")
    if new.rotary_cos is not None and new.rotary_sin is not None:
        _check_rotary(q, new.rotary_cos, new.rotary_sin)


def check_paged(q: Tensor, k: Tensor, v: Tensor, packing: Packing, block_table: Tensor) -> None:
    """Before `check_cache`: what `flash_attn_varlen_func` takes with a block_table."""
    if k.ndim != 4 or k.shape[1] == 0:
        raise ValueError(
            "k must be (num_pages, page_size, num_heads_kv, head_dim) with block_table, "
            f"got shape {tuple(k.shape)}"
        )
    if q.ndim != 3:
        raise ValueError(f"q must be (total, num_heads, head_dim), got shape {tuple(q.shape)}")
    if k.dtype != q.dtype and q.dtype in checks._FLOAT_DTYPES:
        _check_like_q("k", k, q, f": create the cache with dtype={q.dtype}")
    checks._check_heads(q, k, v)
    cu_seqlens_q, cu_seqlens_k, seqused_k, longest_q, longest = packing
    _check_vector("cu_seqlens_q", cu_seqlens_q, None, q)
    batch = cu_seqlens_q.shape[0] - 1
    _check_vector("cu_seqlens_k", cu_seqlens_k, batch + 1, q)
    _check_vector("seqused_k", seqused_k, batch, q)
    _check_table(block_table, batch, q)
    check_seqlen("max_seqlen_q", longest_q)
    check_seqlen("max_seqlen_k", longest)
    if (
        torch.compiler.is_compiling()
        or not q.is_cpu
        or not observe.is_ordinary(cu_seqlens_k)
        or not (seqused_k is None or observe.is_ordinary(seqused_k))
        or peek_interpreter_stack() is not None
    ):
        return
    cu_seqlens_k = in_memory("cu_seqlens_k", cu_seqlens_k)
    lengths = checks._host_lengths("cu_seqlens_k", cu_seqlens_k, 2**31)
    if seqused_k is not None:
        lengths = checks._host_used(in_memory("seqused_k", seqused_k), lengths)
    checks._require_bound("max_seqlen_k", longest, lengths)
    most, page_size = max(lengths, default=0), k.shape[1]
    if block_table.shape[1] * page_size < most:
        raise ValueError(
            f"block_table must have pages of {page_size} rows for the longest sequence, {most} "
            f"rows, got {block_table.shape[1]} pages"
        )


def check_layout(k_cache: Tensor, v_cache: Tensor, backend: Backend, written: bool) -> None:
    """Caches that cannot be used where they lie."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        shape, strides = cache.shape, cache.stride()
        if strides[-1] != 1 and shape[-1] > 1:
            raise ValueError(
                f"{name} must have a last stride of 1, as it is used in place, got strides "
                f"{strides}"
            )
        if backend.aligned:
            _check_aligned(name, cache, backend)
        if written and overlap.overlaps_itself(shape, strides):
            raise ValueError(
                f"{name} must not overlap itself where k is appended to it, got shape "
                f"{tuple(shape)} with strides {strides}"
            )
    if written and overlap.tensors_overlap(k_cache, v_cache):
        (begin_k, end_k), (begin_v, end_v) = overlap.span(k_cache), overlap.span(v_cache)
        raise ValueError(
            "k_cache and v_cache must not be the same memory, in whole or in part, where k is "
            f"appended, got addresses {begin_k:#x} to {end_k:#x} with strides {k_cache.stride()} "
            f"and {begin_v:#x} to {end_v:#x} with strides {v_cache.stride()}"
        )


def check_values(q: Tensor, k_cache: Tensor, cache: Cache, new: New | None) -> None:
    """Lengths, positions and tables, where host memory holds them.

    `cache` may count new rows although `new` is None: those that have been appended already.
    """
    batch, most = batch_size(q, cache), capacity(k_cache, cache)
    if (longest := cache.max_seqlen_q) is not None:
        check_seqlen("max_seqlen_q", longest)
    check_seqlen("seqlen_new", cache.seqlen_new)
    if cache.cache_seqlen is not None:
        _check_held([cache.cache_seqlen], [cache.seqlen_new], most)
    if not q.is_cpu:
        return

    rows_q = [q.shape[1]] * batch
    if cache.cu_seqlens_q is not None:
        rows_q = checks._host_lengths("cu_seqlens_q", cache.cu_seqlens_q, q.shape[0])
        checks._require_bound("max_seqlen_q", MAX_SEQLEN if longest is None else longest, rows_q)
    rows_new = [cache.seqlen_new] * batch
    if cache.cu_seqlens_k_new is not None:
        total = batch * most if new is None else new.k.shape[0]
        rows_new = checks._host_lengths("cu_seqlens_k_new", cache.cu_seqlens_k_new, total)
    held = [most if cache.cache_seqlen is None else cache.cache_seqlen] * batch
    if cache.cache_seqlens is not None:
        held = cache.cache_seqlens.tolist()
    _check_held(held, rows_new, most)
    ends = [a + b for a, b in zip(held, rows_new, strict=True)]
    begins = [0] * batch
    if cache.cache_leftpad is not None:
        begins = _host_padding(cache.cache_leftpad, ends)

    if cache.cache_batch_idx is not None:
        _check_cache_rows(cache.cache_batch_idx, k_cache.shape[0])
    if cache.block_table is not None:
        # A page in front of the padding is used only if new rows go there.
        used = [min(begin, have) for begin, have in zip(begins, held, strict=True)]
        _check_pages(cache.block_table, used, ends, k_cache)
    if new is not None:
        _check_targets(cache, held, ends, k_cache.shape[1])
        if new.rotary_cos is not None:
            turned_q = rows_q if new.q_advances else [min(rows, 1) for rows in rows_q]
            turned = [max(rows) for rows in zip(rows_new, turned_q, strict=True)]
            _check_angles(new.rotary_cos, held, turned)


def _check_like_q(name: str, tensor: Tensor, q: Tensor, advice: str = "") -> None:
    if tensor.dtype != q.dtype:
        raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {tensor.dtype}{advice}")
    checks._check_device(name, tensor, q.device)


def _check_heads(q: Tensor, k_cache: Tensor) -> None:
    try:
        checks._check_head_counts(q, k_cache, "k_cache", "v_cache")
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


def _check_vectors(q: Tensor, cache: Cache) -> None:
    """The int32 tensors of a call."""
    _check_vector("cu_seqlens_q", cache.cu_seqlens_q, None, q)
    batch = batch_size(q, cache)
    _check_vector("cu_seqlens_k_new", cache.cu_seqlens_k_new, batch + 1, q)
    _check_vector("cache_seqlens", cache.cache_seqlens, batch, q)
    _check_vector("cache_batch_idx", cache.cache_batch_idx, batch, q)
    _check_vector("cache_leftpad", cache.cache_leftpad, batch, q)
    if cache.cu_seqlens_k_new is not None and cache.cu_seqlens_q is None:
        raise ValueError("cu_seqlens_k_new must come with cu_seqlens_q, got cu_seqlens_q=None")
    if cache.block_table is not None:
        if cache.cache_batch_idx is not None:
            raise ValueError("block_table and cache_batch_idx must not both be given")
        _check_table(cache.block_table, batch, q)


def _check_vector(name: str, vector: Tensor | None, count: int | None, q: Tensor) -> None:
    """int32 (count,), on the device of q; without `count`, cu_seqlens of any batch."""
    if vector is None:
        return
    checks._check_int32_vector(name, vector, q.device)
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
    checks._check_device("block_table", table, q.device)


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
    _check_like_q("rotary_cos", cos, q)
    _check_like_q("rotary_sin", sin, q)


def _check_aligned(name: str, cache: Tensor, backend: Backend) -> None:
    head_dim, strides = cache.shape[-1], cache.stride()
    if head_dim % 8 != 0:
        raise ValueError(
            f"{name} must have a head_dim that is a multiple of 8 on the {backend.name} backend, "
            f"as it is used in place, got {head_dim}"
        )
    if cache.data_ptr() % 16 != 0 or any(stride % 8 != 0 for stride in strides[:-1]):
        raise ValueError(
            f"{name} must have rows on 16-byte boundaries on the {backend.name} backend, as it is "
            f"used in place, got address {cache.data_ptr():#x} and strides {strides} of "
            f"{cache.element_size()} bytes"
        )


def _check_held(held: list[int], rows_new: list[int], most: int) -> None:
    for i, (rows, new) in enumerate(zip(held, rows_new, strict=True)):
        if rows < 0 or rows + new > most:
            appended = f" and {new} new ones" if new else ""
            raise ValueError(
                f"cache_seqlens must be from 0 to what the cache can hold of a sequence, {most} "
                f"rows, got {rows}{appended} at {i}"
            )


def _host_padding(cache_leftpad: Tensor, ends: list[int]) -> list[int]:
    padding: list[int] = cache_leftpad.tolist()
    for i, (rows, end) in enumerate(zip(padding, ends, strict=True)):
        if not 0 <= rows <= end:
            raise ValueError(
                "cache_leftpad must be from 0 to the length of each sequence, "
                f"got {rows} of {end} rows at {i}"
            )
    return padding


def _check_cache_rows(cache_batch_idx: Tensor, rows: int) -> None:
    for i, row in enumerate(cache_batch_idx.tolist()):
        if not 0 <= row < rows:
            raise ValueError(
                f"cache_batch_idx must be from 0 to {rows - 1}, the rows of k_cache, "
                f"got {row} at {i}"
            )


def _check_pages(table: Tensor, begins: list[int], ends: list[int], k_cache: Tensor) -> None:
    """The entries of positions from `begins` to `ends`; others may hold anything."""
    num_pages, page_size = k_cache.shape[:2]
    if table.numel() == 0:
        return
    low, high = (int(entry) for entry in torch.aminmax(table))
    if low >= 0 and high < num_pages:
        return
    first, last = torch.tensor([begins, ends])[..., None]
    column = torch.arange(table.shape[1])
    used = (column >= first // page_size) & (column * page_size < last)
    wrong = (used & ((table < 0) | (table >= num_pages))).nonzero().tolist()
    if wrong:
        i, at = wrong[0]
        raise ValueError(
            f"block_table must hold pages from 0 to {num_pages - 1} for the {ends[i]} rows of "
            f"sequence {i}, got {int(table[i, at])} at [{i}, {at}]"
        )


def _check_targets(cache: Cache, held: list[int], ends: list[int], page_size: int) -> None:
    """No two new rows go to the same place."""
    table, name, what = cache.block_table, "block_table", "page"
    if cache.cache_batch_idx is not None:  # a table of one page for each sequence
        table, name, what = cache.cache_batch_idx[:, None], "cache_batch_idx", "cache row"
    parts = [
        (i, column)
        for i, (begin, end) in enumerate(zip(held, ends, strict=True))
        if begin < end
        for column in range(begin // page_size, -(-end // page_size))
    ]
    if table is None or len(parts) < 2:
        return
    sequences, columns = map(list, zip(*parts, strict=True))
    pages = table[sequences, columns].tolist()
    if len(set(pages)) == len(pages):
        return
    taken: dict[int, list[tuple[int, int, int]]] = {}
    for (i, column), page in zip(parts, pages, strict=True):
        start = max(held[i] - column * page_size, 0)
        stop = min(ends[i] - column * page_size, page_size)
        others = taken.setdefault(page, [])
        for other_start, other_stop, other in others:
            if start < other_stop and other_start < stop:
                raise ValueError(
                    f"{name} must not send new rows of two sequences to one place, got sequences "
                    f"{other} and {i} in {what} {page} at {max(start, other_start)}"
                )
        others.append((start, stop, i))


def _check_angles(rotary_cos: Tensor, held: list[int], turned: list[int]) -> None:
    positions = max((a + b for a, b in zip(held, turned, strict=True) if b != 0), default=0)
    if rotary_cos.shape[0] < positions:
        raise ValueError(
            f"rotary_cos must have a row for each of {positions} positions, "
            f"got {rotary_cos.shape[0]}"
        )

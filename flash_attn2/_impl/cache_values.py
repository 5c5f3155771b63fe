"""Checks of values around a KV cache: where it lies, lengths, positions and tables.

Values are checked where host memory holds them. On a GPU the kernels bound every access: reads
stay within the tensors, and what an append has no place for is not written.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from flash_attn2._impl import backends, observe, overlap, quantised
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.cache_checks import check_seqlen
from flash_attn2._impl.checks import host_lengths, host_used, require_bound
from flash_attn2._impl.problem import MAX_SEQLEN, NO_PAGES, Append, PagedKV, Problem, capacity
from flash_attn2._impl.tensors import in_memory
from flash_attn2._impl.widths import keys_hold_values

_FEW = 64  # entries of a table that Python goes through as fast as torch does


def check_values(p: Problem) -> None:
    """The layout of the caches; lengths, positions and tables, where host memory holds them.

    seqs_k may count new rows without an append: those that have been appended already.
    """
    check_layout(p)
    q, k_cache, _, seqs_q, seqs_k, _, pages, *_ = p
    assert k_cache is not None
    longest, appended, held_by_all = seqs_q.max_seqlen, seqs_k.appended, seqs_k.max_seqlen
    most = capacity(k_cache, pages)
    if longest is not None:
        check_seqlen("max_seqlen_q", longest)
    if not 0 <= appended <= MAX_SEQLEN:
        check_seqlen("seqlen_new", appended)
    if held_by_all is not None and not 0 <= held_by_all <= most - appended:
        _check_held([held_by_all], [appended], most)
    if not q.is_cpu:
        return
    cu_seqlens_q = seqs_q.cu_seqlens
    if cu_seqlens_q is None:
        batch = q.shape[0]
        rows_q = [q.shape[1]] * batch
    else:
        rows_q = host_lengths("cu_seqlens_q", cu_seqlens_q, q.shape[0])
        require_bound("max_seqlen_q", MAX_SEQLEN if longest is None else longest, rows_q)
        batch = len(rows_q)
    if seqs_k.seqused is not None:
        held = seqs_k.seqused.tolist()
    else:
        held = [most if held_by_all is None else held_by_all] * batch
    if seqs_k.cu_appended is None:
        rows_new = [appended] * batch
    else:
        total = batch * most if p.append is None else p.append.new_k.shape[0]
        rows_new = host_lengths("cu_seqlens_k_new", seqs_k.cu_appended, total)
    ends = list(map(operator.add, held, rows_new))
    if batch and (min(held) < 0 or max(ends) > most):
        _check_held(held, rows_new, most)
    begins = [0] * batch
    if seqs_k.leftpad is not None:
        begins = _host_padding(seqs_k.leftpad, ends)
    if pages.batch_idx is not None:
        _check_cache_rows(pages.batch_idx, k_cache.shape[0])
    if pages.block_table is not None:
        # A page in front of the padding is used only if new rows go there.
        _check_pages(pages.block_table, list(map(min, begins, held)), ends, k_cache)
    if p.quantised is not None and p.quantised.k_descale is not None:
        quantised.check_values(p, ends)
    if p.append is not None:
        if pages is not NO_PAGES:
            _check_targets(pages, held, ends, k_cache.shape[1])
        if (cos := p.append.rotary.cos) is not None:
            turned_q = rows_q if p.append.q_advances else list(map(min, rows_q, [1] * batch))
            _check_angles(cos, held, list(map(max, rows_new, turned_q)))


def check_paged_lengths(p: Problem, table: Tensor) -> None:
    """Numbers of keys, as `flash_attn_varlen_func` takes them with a block_table."""
    cu_seqlens_k, seqused_k, longest, *_ = p.seqs_k
    k = p.k
    assert cu_seqlens_k is not None
    assert longest is not None
    assert k is not None
    if (
        torch.compiler.is_compiling()
        or not p.q.is_cpu
        or not observe.is_ordinary(cu_seqlens_k)
        or not (seqused_k is None or observe.is_ordinary(seqused_k))
        or peek_interpreter_stack() is not None
    ):
        return
    lengths = host_lengths("cu_seqlens_k", in_memory("cu_seqlens_k", cu_seqlens_k), 2**31)
    if seqused_k is not None:
        lengths = host_used("seqused_k", in_memory("seqused_k", seqused_k), lengths)
    require_bound("max_seqlen_k", longest, lengths)
    most, page_size = max(lengths, default=0), k.shape[1]
    if table.shape[1] * page_size < most:
        raise ValueError(
            f"block_table must have pages of {page_size} rows for the longest sequence, {most} "
            f"rows, got {table.shape[1]} pages"
        )


def check_layout(p: Problem) -> None:
    """Caches that cannot be used where they lie."""
    k_cache, v_cache, written = p.k, p.v, p.append is not None
    assert k_cache is not None
    assert v_cache is not None
    backend = backends.serving(p.q)
    if p.quantised is not None and p.quantised.k_descale is not None:
        _check_scales_apart(p)
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
    shared = (
        written and k_cache.data_ptr() == v_cache.data_ptr() and keys_hold_values(k_cache, v_cache)
    )
    if p.append is not None and (shared or p.append.new_v is None):
        _check_written_once(p.append, shared)
    if (
        written
        and not shared
        and overlap.any_close((k_cache,), (v_cache,))
        and overlap.tensors_overlap(k_cache, v_cache)
    ):
        (begin_k, end_k), (begin_v, end_v) = overlap.span(k_cache), overlap.span(v_cache)
        raise ValueError(
            "k_cache and v_cache must not be the same memory, in whole or in part, where k is "
            "appended, unless v_cache is k_cache[..., :head_dim_v], got addresses "
            f"{begin_k:#x} to {end_k:#x} with strides {k_cache.stride()} and {begin_v:#x} to "
            f"{end_v:#x} with strides {v_cache.stride()}"
        )


def _check_scales_apart(p: Problem) -> None:
    """Of scales that are written."""
    assert p.quantised is not None
    k_scales, v_scales = p.quantised
    if not (written := quantised.written_scales(p)):
        return
    for x in written:
        name = "k_descale" if x is k_scales else "v_descale"
        if overlap.overlaps_itself(tuple(x.shape), x.stride()):
            raise ValueError(
                f"{name} must not overlap itself where k is appended, got shape {tuple(x.shape)} "
                f"with strides {x.stride()}"
            )
        for other, y in (("k_cache", p.k), ("v_cache", p.v)):
            assert y is not None
            if overlap.tensors_overlap(x, y):
                raise ValueError(f"{name} must not share memory with {other} where k is appended")
    assert k_scales is not None
    assert v_scales is not None
    assert p.k is not None
    assert p.v is not None
    same = (
        k_scales.data_ptr() == v_scales.data_ptr()
        and k_scales.shape == v_scales.shape
        and k_scales.stride() == v_scales.stride()
    )
    if p.k.numel() == 0:
        return
    if keys_hold_values(p.k, p.v):
        if not same:
            raise ValueError(
                "v_descale must be k_descale where v_cache is k_cache[..., :head_dim_v], got "
                "another tensor"
            )
    elif overlap.tensors_overlap(k_scales, v_scales):
        raise ValueError("k_descale and v_descale must not share memory where k is appended")


def _check_written_once(append: Append, shared: bool) -> None:
    """What goes into a cache of keys whose leading columns are the values."""
    new_k, new_v, (cos, _, _), _ = append
    if not shared:
        raise ValueError(
            "v must be given with k, got v=None: only where v_cache is k_cache[..., :head_dim_v], "
            "in the same memory, are the values in k"
        )
    if new_v is not None and new_k.numel() != 0 and not keys_hold_values(new_k, new_v):
        raise ValueError(
            "k_cache and v_cache must not be the same memory where v is appended beside k: v must "
            "be None or k[..., :head_dim_v], in the same memory, as v_cache is of k_cache, got "
            "another tensor"
        )
    if cos is not None and new_k.numel() != 0:
        raise ValueError(
            "rotary_cos must be None where v_cache is k_cache[..., :head_dim_v], got a tensor: it "
            "would turn the values, too. Rotate k before the call"
        )


def _check_aligned(name: str, cache: Tensor, backend: Backend) -> None:
    head_dim, strides = cache.shape[-1], cache.stride()
    if head_dim % 8 != 0:
        raise ValueError(
            f"{name} must have a head_dim that is a multiple of 8 on the {backend.name} backend, "
            f"as it is used in place, got {head_dim}"
        )
    boundary = 8 * cache.element_size()
    if cache.data_ptr() % boundary != 0 or any(stride % 8 != 0 for stride in strides[:-1]):
        raise ValueError(
            f"{name} must have rows on {boundary}-byte boundaries on the {backend.name} backend, "
            f"as it is used in place, got address {cache.data_ptr():#x} and strides {strides} of "
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
    if table.numel() <= _FEW:
        entries = table.flatten().tolist()
        low, high = min(entries), max(entries)
    else:
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


def _check_targets(pages: PagedKV, held: list[int], ends: list[int], page_size: int) -> None:
    """No two new rows go to the same place."""
    table, name, what = pages.block_table, "block_table", "page"
    if pages.batch_idx is not None:  # a table of one page for each sequence
        table, name, what = pages.batch_idx[:, None], "cache_batch_idx", "cache row"
    parts = []
    for i, (begin, end) in enumerate(zip(held, ends, strict=True)):
        if begin < end:
            for column in range(begin // page_size, -(-end // page_size)):
                parts.append((i, column))
    if table is None or len(parts) < 2:
        return
    sequences, columns = map(list, zip(*parts, strict=True))
    written = table[sequences, columns].tolist()
    if len(set(written)) == len(written):
        return
    taken: dict[int, list[tuple[int, int, int]]] = {}
    for (i, column), page in zip(parts, written, strict=True):
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
    positions = 0
    for rows, turning in zip(held, turned, strict=True):
        if turning != 0:
            positions = max(positions, rows + turning)
    if rotary_cos.shape[0] < positions:
        raise ValueError(
            f"rotary_cos must have a row for each of {positions} positions, "
            f"got {rotary_cos.shape[0]}"
        )

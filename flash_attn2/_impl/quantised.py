"""KV caches of 8 bits: their dtypes, and what their scales are for.

Entries of such a cache are codes, each of which stands for a number that is multiplied by a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import PagedKV, Problem, QuantisedKV, batch_size

# By the names that csrc/core/params.h has for them.
CODE_NAMES = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8",
}
ALLOWED = ", ".join(CODE_NAMES.values())
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}

QUERY_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

SEQUENCE, PAGE, ROW = "sequence", "page", "row"  # what a scale is for, beside a head


def scale_unit(scales: Tensor, cache: Tensor, pages: PagedKV, batch: int) -> str | None:
    """What each of these scales of a cache is for; None where they have a shape of nothing."""
    shape, (num_pages, page_size, num_heads_kv, _) = scales.shape, cache.shape
    if len(shape) not in (2, 3) or shape[-1] != num_heads_kv:
        return None
    if len(shape) == 2:
        if shape[0] == batch:
            return SEQUENCE
        return PAGE if pages.block_table is not None and shape[0] == num_pages else None
    if shape[0] != num_pages:
        return None
    return ROW if shape[1] == page_size else PAGE if shape[1] == 1 else None


def are_written(scales: Tensor, cache: Tensor) -> bool:
    """Whether an append computes and writes these scales, which are those of rows."""
    return scales.ndim == 3 and scales.shape[1] == cache.shape[1]


def written_scales(p: Problem) -> tuple[Tensor, ...]:
    """The scales that a call writes."""
    k_cache, scales = p.k, p.quantised
    if p.append is None or k_cache is None or scales is None or scales.k_descale is None:
        return ()
    return tuple(x for x in scales if x is not None and are_written(x, k_cache))


def for_append(scales: Tensor | None, cache: Tensor) -> Tensor | None:
    """As the op of an append takes them, which says of all that it may write them."""
    if scales is None or cache.ndim != 4 or are_written(scales, cache):
        return scales
    return scales.contiguous()


_NAMES = ("k_descale", "v_descale")


def check_shapes(p: Problem) -> None:
    """Dtypes of queries, caches and scales, and what needs no values of the scales."""
    assert p.k is not None
    assert p.v is not None
    scales = (None, None) if p.quantised is None else p.quantised
    if p.k.dtype not in CODE_NAMES:
        for name, x in zip(_NAMES, scales, strict=True):
            if x is not None:
                raise ValueError(
                    f"{name} must be None with a cache of {p.k.dtype}, got a tensor: scales are "
                    f"for caches of {ALLOWED}"
                )
        return
    if p.q.dtype not in QUERY_DTYPES:
        raise TypeError(
            f"q must be float16, bfloat16 or float32 with a cache of {p.k.dtype}, got {p.q.dtype}"
        )
    if p.v.dtype != p.k.dtype:
        raise TypeError(f"v_cache must have the dtype of k_cache, {p.k.dtype}, got {p.v.dtype}")
    for name, x, cache in zip(_NAMES, scales, (p.k, p.v), strict=True):
        if x is None:
            raise ValueError(f"{name} must be given with a cache of {cache.dtype}, got None")
        _check_scales(name, x, cache, p)


def _check_scales(name: str, x: Tensor, cache: Tensor, p: Problem) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {x.dtype}")
    if x.device != p.q.device:
        raise ValueError(f"{name} must be on the device of q, {p.q.device}, got {x.device}")
    batch, (num_pages, page_size, num_heads_kv, _) = batch_size(p), cache.shape
    paged = p.pages.block_table is not None
    if scale_unit(x, cache, p.pages, batch) is None:
        what = "pages" if paged else "rows of the cache"
        of_pages = f"({num_pages}, {num_heads_kv}) or " if paged else ""
        raise ValueError(
            f"{name} must be ({batch}, {num_heads_kv}) by sequences, {of_pages}({num_pages}, 1, "
            f"{num_heads_kv}) by {what}, or ({num_pages}, {page_size}, {num_heads_kv}) by tokens, "
            f"got shape {tuple(x.shape)}"
        )
    if paged and x.ndim == 2 and x.shape[0] == num_pages == batch > 1 and x.stride(0) != 0:
        raise ValueError(
            f"{name} must say whether its scales are of sequences or pages, which are {batch} "
            f"both, got shape {tuple(x.shape)}: pass {name}[:, None] for scales of pages, one for "
            "all with expand, or have a cache with another number of pages"
        )


def check_values(p: Problem, ends: Sequence[int]) -> None:
    """Scales of sequences, and of pages up to the `ends` of sequences, in host memory.

    Those of tokens are what appends have written: one that is none makes what it multiplies NaN.
    """
    if p.quantised is None or p.k is None:
        return
    for name, x in zip(_NAMES, p.quantised, strict=True):
        if x is None or (unit := scale_unit(x, p.k, p.pages, batch_size(p))) == ROW:
            continue
        rows = x.flatten(1)
        if unit == PAGE:
            rows = rows[_pages_in_use(p.pages, ends, p.k.shape[1])]
        wrong = rows[~((rows > 0) & (rows < torch.inf))]
        if wrong.numel() != 0:
            raise ValueError(f"{name} must hold positive numbers, got {wrong[0].item()}")


def _pages_in_use(pages: PagedKV, ends: Sequence[int], page_size: int) -> Tensor:
    """The pages, or rows of a dense cache, of sequences that reach to `ends`."""
    if pages.block_table is not None:
        columns = torch.arange(pages.block_table.shape[1])
        used = columns * page_size < torch.tensor(ends, dtype=torch.int64)[:, None]
        return pages.block_table[used].long()
    rows = torch.arange(len(ends)) if pages.batch_idx is None else pages.batch_idx.long()
    return rows[torch.tensor(ends, dtype=torch.int64) > 0]


def lower_quantised(quantised: QuantisedKV, p: Problem) -> dict[str, Any]:
    """QuantisedKV of csrc/core/params.h."""
    assert p.k is not None

    def scales(x: Tensor | None) -> dict[str, Any]:
        assert x is not None
        assert p.k is not None
        unit = scale_unit(x, p.k, p.pages, batch_size(p))
        by_page, *by_row, by_head = x.stride()
        row_stride = by_row[0] if unit == ROW else 0
        return {"unit": unit, "factors": (x.data_ptr(), by_page, row_stride, by_head)}

    return {
        "type": CODE_NAMES[p.k.dtype],
        "k": scales(quantised.k_descale),
        "v": scales(quantised.v_descale),
    }

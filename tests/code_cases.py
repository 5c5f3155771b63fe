"""KV caches of 8 bits: those of `cache_cases`, quantised, with scales of every unit."""

from __future__ import annotations

from typing import Any

import torch
from cache_cases import CacheCase
from support import TARGETS, Target
from torch import Tensor

from flash_attn2.reference import quantised, row_scales

CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
UNITS = ("sequence", "page", "page_rows", "row")
QUERIES = [target for target in TARGETS if target.dtype is not torch.float64]

# Where most numbers of a normal distribution are inside, and some beyond the largest code.
MEAN_SCALE = {torch.float8_e4m3fn: 1 / 256, torch.float8_e5m2: 1 / 2**15, torch.int8: 1 / 64}


def quantised_arguments(
    case: CacheCase, target: Target, code: torch.dtype, unit: str
) -> dict[str, Any]:
    """Those of the case, over caches of `code`."""
    arguments = case.arguments(target)
    of_pages = "block_table" in arguments
    caches = []
    for name in ("k", "v"):
        cache = arguments[f"{name}_cache"]
        scales = _scales(cache, unit if of_pages or unit != "page" else "page_rows", code)
        rows = scales
        if unit == "sequence":
            rows = _of_rows(scales, arguments, cache)
        elif scales.ndim == 2:
            rows = scales[:, None]
        caches.append(quantised(cache.float(), rows[..., None], code).view(torch.uint8))
        arguments[f"{name}_descale"] = scales
    for name, cache in zip(("k_cache", "v_cache"), case.laid_out(caches), strict=True):
        arguments[name] = cache.view(code)
    return arguments


def _scales(cache: Tensor, unit: str, code: torch.dtype) -> Tensor:
    num_pages, _, num_heads_kv, _ = cache.shape
    if unit == "row":
        scales = row_scales(cache, code)
        return torch.where(cache.isnan().any(-1), torch.nan, scales)  # which is not looked at
    shape = {
        "sequence": (3, num_heads_kv),
        "page": (num_pages, num_heads_kv),
        "page_rows": (num_pages, 1, num_heads_kv),
    }[unit]
    return MEAN_SCALE[code] * (0.5 + torch.rand(shape, device=cache.device))


def _of_rows(scales: Tensor, arguments: dict[str, Any], cache: Tensor) -> Tensor:
    """Scales of sequences by rows of the cache."""
    rows = torch.ones(cache.shape[:3], device=cache.device)
    table = arguments.get("block_table")
    if table is None:
        table = arguments.get("cache_batch_idx", torch.arange(3))[:, None]
    for sequence, pages in enumerate(table.tolist()):
        for page in pages:
            if 0 <= page < cache.shape[0]:
                rows[page] = scales[sequence]
    return rows

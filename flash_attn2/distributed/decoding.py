"""Decoding over a cache whose keys lie on several ranks."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from flash_attn2._impl.arguments import named_only, refuse_keywords, require_bool, require_tensor
from flash_attn2.distributed.exchange import all_gathered
from flash_attn2.kvcache import flash_attn_with_kvcache
from flash_attn2.merging import merge_attention

__all__ = ["sharded_kvcache_attention"]


@named_only
def sharded_kvcache_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group: Any,
    *,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
    **unknown: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """`flash_attn_with_kvcache` over keys of which each rank of the group has some in its cache.

    q (batch, seqlen_q, num_heads, head_dim) is the same on all ranks, as are softmax_scale, softcap
    and sink; caches, lengths and tables are the rank's own, and may hold nothing of a sequence.
    Every query sees every key of all ranks: which keys are on which rank does not matter, and
    nothing is masked, as in decoding with a query for each sequence. New keys are written before,
    by whoever has their place (`flash_attn_with_kvcache` with k and v on one rank, or by hand).

    Returns out, shaped as q, or (out, lse), on every rank, bit for bit the same. Ranks send out,
    in q's dtype, and lse, and merge them in the order of ranks in float32. All must call it. There
    is no gradient. TypeError and ValueError as of `flash_attn_with_kvcache`, on the rank at fault.
    """
    if unknown:
        refuse_keywords(sharded_kvcache_attention, unknown)
    require_tensor("q", q)
    require_bool("return_lse", return_lse)
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a ProcessGroup, got {type(group).__name__}")
    with torch.no_grad():
        out, lse = flash_attn_with_kvcache(
            q,
            k_cache,
            v_cache,
            cache_seqlens=cache_seqlens,
            cache_batch_idx=cache_batch_idx,
            cache_leftpad=cache_leftpad,
            block_table=block_table,
            softmax_scale=softmax_scale,
            softcap=softcap,
            sink=sink if group.rank() == 0 else None,  # it counts once
            num_splits=num_splits,
            return_lse=True,
        )
        outs, lses = (all_gathered(group, x) for x in (out, lse))
        merged, lse = merge_attention([x.float() if _low(x) else x for x in outs], lses)
        merged = merged.to(out.dtype)
    return (merged, lse) if return_lse else merged


def _low(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)

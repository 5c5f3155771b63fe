"""FlexAttention's BlockMask -> ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.block_mask import BlockMask
from flash_attn2.masks.pattern import Pattern
from flash_attn2.masks.tables import blocks, function


def from_torch(block_mask: Any) -> BlockMask:
    """`BlockMask.from_torch`."""
    if not hasattr(block_mask, "kv_num_blocks") or not hasattr(block_mask, "mask_mod"):
        raise TypeError(
            "block_mask must be a torch.nn.attention.flex_attention.BlockMask, got "
            f"{type(block_mask).__name__}"
        )
    size_q, size_k = _block_size(block_mask.BLOCK_SIZE)
    partial = _listed("kv", block_mask.kv_num_blocks, block_mask.kv_indices)
    batch, heads, rows, cols = partial.shape
    seqlen_q, seqlen_k = _lengths(block_mask, rows * size_q, cols * size_k)
    size = (size_q, size_k)

    def table(listed: Tensor) -> Pattern:
        # FlexAttention has a block more where a length was rounded up.
        return blocks(listed[:, :, : -(-seqlen_q // size_q), : -(-seqlen_k // size_k)], size)

    pattern = table(partial) & function(block_mask.mask_mod)
    if block_mask.full_kv_num_blocks is not None:
        full = _listed("full_kv", block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
        pattern = pattern | table(full)
    device = block_mask.kv_indices.device
    return pattern.build(seqlen_q, seqlen_k, batch=batch, heads=heads, device=device)


def _block_size(size: Any) -> tuple[int, int]:
    of_q, of_k = size if isinstance(size, (tuple, list)) else (size, size)
    if of_q % BLOCK or of_k % BLOCK:
        raise ValueError(
            f"block_mask must have a BLOCK_SIZE of multiples of {BLOCK}, got {of_q, of_k}"
        )
    return int(of_q), int(of_k)


def _lengths(block_mask: Any, rounded_q: int, rounded_k: int) -> tuple[int, int]:
    # Releases before 2.6 know lengths in whole blocks only.
    seqlen_q, seqlen_k = getattr(block_mask, "seq_lengths", (rounded_q, rounded_k))
    return int(seqlen_q), int(seqlen_k)


def _listed(name: str, counts: Tensor, indices: Tensor) -> Tensor:
    """bool (batch, heads, rows, cols): blocks that are among the first `counts` of their row."""
    require_tensor(f"{name}_num_blocks", counts)
    require_tensor(f"{name}_indices", indices)
    if indices.ndim != 4 or counts.shape != indices.shape[:3]:
        raise ValueError(
            f"block_mask must have {name}_indices (batch, heads, rows, cols) and as many counts, "
            f"got shapes {tuple(indices.shape)} and {tuple(counts.shape)}"
        )
    counts, indices = counts.to("cpu"), indices.to("cpu", torch.int64)
    counted = torch.arange(indices.shape[-1], device="cpu") < counts[..., None]
    # A column beyond takes what does not count.
    nowhere = indices.shape[-1]
    listed = torch.zeros(*indices.shape[:3], nowhere + 1, dtype=torch.bool, device="cpu")
    places = torch.where(counted, indices, nowhere)
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) <= nowhere:
        raise ValueError(f"block_mask must have {name}_indices from 0 to {nowhere - 1}")
    return listed.scatter_(-1, places, True)[..., :nowhere]

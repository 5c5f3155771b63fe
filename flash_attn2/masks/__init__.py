"""Which keys each query sees: masks of blocks, for `flash_attn_func(..., block_mask=)`.

from flash_attn2 import masks

pattern = masks.documents(ids) & masks.causal() | masks.prefix(128)
mask = pattern.build(seqlen, device=q.device)
out = flash_attn_func(q, k, v, block_mask=mask)
"""

from flash_attn2.masks.block_mask import BlockMask, MaskRow
from flash_attn2.masks.documents import documents
from flash_attn2.masks.leaves import causal, global_tokens, prefix, random_blocks, window
from flash_attn2.masks.pattern import Pattern
from flash_attn2.masks.recipes import bigbird, longformer
from flash_attn2.masks.tables import blocks, dense, function

__all__ = [
    "BlockMask",
    "MaskRow",
    "Pattern",
    "bigbird",
    "blocks",
    "causal",
    "dense",
    "documents",
    "function",
    "global_tokens",
    "longformer",
    "prefix",
    "random_blocks",
    "window",
]

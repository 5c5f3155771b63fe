"""Which keys each query sees: masks of blocks, for `flash_attn_func(..., block_mask=)`."""

from flash_attn2.masks.block_mask import BlockMask, MaskRow

__all__ = ["BlockMask", "MaskRow"]

"""What the modules of flash-attn's names hold; `flash_attn2.compat.names` says which holds what."""

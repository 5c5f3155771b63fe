"""What one attention moves and stores: `python -m flash_attn2 io`."""

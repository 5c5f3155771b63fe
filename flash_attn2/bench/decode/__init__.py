"""`python -m flash_attn2 bench --mode decode`: one new query per sequence, over a KV cache."""

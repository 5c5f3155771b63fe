"""`python -m flash_attn2 bench --mode decode`: one new query per sequence, over a KV cache.

The parts are those of the other modes: `cases`, `contenders`, `accuracy`, `runner`, `report` and
`plots`; `suite` is what the command sees of them.
"""

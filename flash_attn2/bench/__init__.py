"""The benchmark behind `python -m flash_attn2 bench`.

`suites` says what a mode measures. Of self-attention, `cases` are the problems, of which passes
(`modes`), and `contenders` what is compared; `timing`, `memory` and `accuracy` measure one thing
each; `runner` puts them together; `report` and `plots` show the results, and `record` keeps them.
`decode` has the same parts for decoding.
"""

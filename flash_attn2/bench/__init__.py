"""The benchmark behind `python -m flash_attn2 bench`, and the parts that benchmarks/ shares.

A *suite* (`suite`) is named cases, contenders, and what is measured of them. All suites go through
one pipeline: `race` times the contenders of a case in turns, `runner` goes through the cases (in
this process, or by `isolate` in others) and keeps every result at once, `record` is the file that
they are kept in, `report` and `plots` show a record. `timing`, `memory` and `accuracy` measure one
thing each.

`suites` says which suite a mode of the command is. Self-attention is `cases`, `contenders`,
`modes`, `attention` and its report and plots; decoding is the folder `decode` with the same parts;
the CPU table is `benchmarks/cpu_*.py`.
"""

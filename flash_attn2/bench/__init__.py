"""The benchmark behind `python -m flash_attn2 bench`.

`cases` says what is measured, of which passes (`modes`), and `contenders` what is compared;
`timing`, `memory` and `accuracy` measure one thing each; `runner` puts them together; `report` and
`plots` show the results.
"""

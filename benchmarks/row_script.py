"""What the scripts that measure rows have in common: options, the choice of rows, the run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recorded
import torch
from cpu_markdown import one_line, tables
from cpu_rows import THREADS
from cpu_suite import CpuTable

from flash_attn2.bench.record import read_record
from flash_attn2.bench.timing import Budget

_ROUNDS = (5, 50)  # at least and at most
_QUICK_ROUNDS = (2, 3)


def run(
    argv: Sequence[str] | None,
    about: str | None,
    *,
    output: str,
    seconds: int,
    rows: Callable[[bool], Sequence[Any]],
    suite: Callable[[Sequence[Any], Budget], CpuTable],
    more: Callable[[Sequence[Any]], Mapping[str, Any]] = lambda selected: {},
) -> int:
    """The script's exit status. about is its docstring; output names its record and seconds is the
    time of a row, unless options say otherwise. rows(quick) are all of them, or tiny ones; more:
    what the record says of those that were selected."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("bench-results", output))
    add("--rows", default="", metavar="REGEX", help="only rows with such a name")
    add("--seconds", type=float, default=float(seconds), help=f"per row (default: {seconds})")
    add("--quick", action="store_true", help="tiny problems, to try the script")
    add("--list", action="store_true", help="only print the names of the rows")
    add("--show", type=Path, metavar="FILE", help="only print FILE's tables")
    args = parser.parse_args(argv)
    if args.show:
        print(tables(read_record(args.show)))
        return 0
    selected = [row for row in rows(args.quick) if re.search(args.rows, row.name)]
    if not selected:
        parser.error(f"--rows {args.rows!r} matches no row; --list shows their names")
    if args.list:
        print("\n".join(row.name for row in selected))
        return 0
    torch.set_num_threads(max(THREADS))  # as the record says of the machine
    budget = Budget(args.seconds, *(_QUICK_ROUNDS if args.quick else _ROUNDS))
    options = {"rows": args.rows, "seconds": args.seconds, "quick": args.quick, **more(selected)}
    return recorded.run(suite(selected, budget), args.output, options, one_line, tables)

"""Measures flash_attn2 on the CPU against everything else that computes attention there.

    python benchmarks/cpu_table.py [--output FILE] [--rows REGEX] [--seconds S] [--quick]
    python benchmarks/cpu_table.py --show FILE

All contenders of a row take turns, each with one thread and with as many as torch takes. Shows
Markdown tables of ratios of medians beside what is required and aimed at, and writes every sample
as JSON after each row, so that nothing is lost when the run stops. About ten minutes on a quiet
machine with two cores, and six more for the rows beside other runtimes (`--rows ^peers`). It needs
`pip install "flash_attn2[bench]"` and a C++ compiler ($CXX or c++), for the peak of the machine and
for flex_attention; the other runtimes `pip install "flash_attn2[peers]"`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import peer_rows
import peers
import recorded
import torch
from cpu_markdown import one_line, tables
from cpu_rows import THREADS, rows
from cpu_suite import CpuTable

from flash_attn2.bench.record import read_record
from flash_attn2.bench.timing import Budget

_ROUNDS = (5, 50)  # at least and at most
_QUICK_ROUNDS = (2, 3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench-results/cpu-table.json"))
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows with such a name")
    parser.add_argument("--seconds", type=float, default=3.0, help="per row (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny problems, to try the script")
    parser.add_argument("--list", action="store_true", help="only print the names of the rows")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print FILE's tables")
    args = parser.parse_args(argv)
    if args.show:
        print(tables(read_record(args.show)))
        return 0
    everything = [*rows(args.quick), *peer_rows.rows(args.quick)]
    selected = [row for row in everything if re.search(args.rows, row.name)]
    if not selected:
        parser.error(f"--rows {args.rows!r} matches no row; --list shows their names")
    if args.list:
        print("\n".join(row.name for row in selected))
        return 0
    torch.set_num_threads(max(THREADS))  # as the record says of the machine
    budget = Budget(args.seconds, *(_QUICK_ROUNDS if args.quick else _ROUNDS))
    options = {"rows": args.rows, "seconds": args.seconds, "quick": args.quick}
    if any(isinstance(row, peer_rows.PeerRow) for row in selected):
        options |= {"peers": peers.releases(), "peer_rows": len(peer_rows.rows())}
    return recorded.run(CpuTable(selected, budget), args.output, options, one_line, tables)


if __name__ == "__main__":
    sys.exit(main())

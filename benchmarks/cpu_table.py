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

import sys
from collections.abc import Sequence
from typing import Any

import peer_rows
import peers
import row_script
from cpu_rows import rows
from cpu_suite import CpuTable


def _all_rows(quick: bool) -> list[Any]:
    return [*rows(quick), *peer_rows.rows(quick)]


def _about_peers(selected: Sequence[Any]) -> dict[str, Any]:
    if not any(isinstance(row, peer_rows.PeerRow) for row in selected):
        return {}
    return {"peers": peers.releases(), "peer_rows": len(peer_rows.rows())}


def main(argv: Sequence[str] | None = None) -> int:
    return row_script.run(
        argv,
        __doc__,
        output="cpu-table.json",
        seconds=3,
        rows=_all_rows,
        suite=CpuTable,
        more=_about_peers,
    )


if __name__ == "__main__":
    sys.exit(main())

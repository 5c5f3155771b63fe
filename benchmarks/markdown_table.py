"""Prints results of `python -m flash_attn2 bench` as a Markdown table.

    python benchmarks/markdown_table.py benchmarks/results/NAME.json [REGEX]

REGEX selects cases by name. Needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

OURS, OTHERS = "flash_attn2", ("SDPA", "standard")


def main(path: str, pattern: str = "") -> None:
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    machine, versions = record["machine"], record["versions"]
    hardware = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    print(f"{hardware}; torch {versions['torch']}, flash_attn2 {versions['flash_attn2']}\n")
    columns = ["case", "time", "GFLOP/s"]
    columns += [f"x {name}" for name in OTHERS] + ["extra memory"]
    columns += [f"{name}'s" for name in OTHERS] + ["max error"]
    print(f"| {' | '.join(columns)} |")
    print("|---|" + "---:|" * (len(columns) - 1))
    for result in record["results"]:
        if re.search(pattern, result["case"]["name"]):
            print(f"| {' | '.join(row(result))} |")


def row(result: dict[str, Any]) -> list[str]:
    contenders = result["contenders"]
    ours = contenders[OURS]
    cells = [f"`{result['case']['name']}`", f"{ours['seconds'] * 1e3:.3g} ms"]
    cells.append(f"{ours['flops_per_second'] / 1e9:.0f}")
    cells += [ratio(contenders[name]) for name in OTHERS]
    cells += [memory(contenders[name]) for name in (OURS, *OTHERS)]
    cells.append(f"{ours['error']:.1e}")
    return cells


def ratio(contender: dict[str, Any]) -> str:
    return f"{contender['ratio']['value']:.2f}" if "ratio" in contender else "n/a"


def memory(contender: dict[str, Any]) -> str:
    size = contender.get("extra_bytes")
    return "n/a" if size is None else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])

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
SELF_ATTENTION = "case|time|GFLOP/s|x SDPA|x standard|extra memory|SDPA's|standard's|max error"
DECODING = "case|time|GB/s|of memory|SDPA's GB/s|x SDPA|x SDPA packed|max error"


def main(path: str, pattern: str = "") -> None:
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    machine, versions = record["machine"], record["versions"]
    hardware = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    print(f"{hardware}; torch {versions['torch']}, flash_attn2 {versions['flash_attn2']}\n")
    decoding = record["options"].get("mode") == "decode"
    columns = (DECODING if decoding else SELF_ATTENTION).split("|")
    print(f"| {' | '.join(columns)} |")
    print("|---|" + "---:|" * (len(columns) - 1))
    for result in record["results"]:
        if re.search(pattern, result["case"]["name"]):
            print(f"| {' | '.join(decode_row(result) if decoding else row(result))} |")


def row(result: dict[str, Any]) -> list[str]:
    contenders = result["contenders"]
    ours = contenders[OURS]
    cells = [f"`{result['case']['name']}`", f"{ours['seconds'] * 1e3:.3g} ms"]
    cells.append(f"{ours['flops_per_second'] / 1e9:.0f}")
    cells += [ratio(contenders[name]) for name in OTHERS]
    cells += [memory(contenders[name]) for name in (OURS, *OTHERS)]
    cells.append(f"{ours['error']:.1e}")
    return cells


def decode_row(result: dict[str, Any]) -> list[str]:
    contenders, case = result["contenders"], result["case"]
    ours = contenders[OURS]
    return [
        f"`{case['name']}`",
        f"{ours['seconds'] * 1e6:.0f} µs",
        f"{ours['bytes_per_second'] / 1e9:.1f}",
        f"{ours['share_of_memory']:.0%}",
        f"{contenders['SDPA']['bytes_per_second'] / 1e9:.1f}",
        ratio(contenders["SDPA"]),
        ratio(contenders["SDPA packed"]),
        f"{ours['error']:.1e}",
    ]


def ratio(contender: dict[str, Any]) -> str:
    return f"{contender['ratio']['value']:.2f}" if "ratio" in contender else "n/a"


def memory(contender: dict[str, Any]) -> str:
    size = contender.get("extra_bytes")
    return "n/a" if size is None else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""Prints results of `python -m flash_attn2 bench` as a Markdown table.

    python benchmarks/markdown_table.py benchmarks/results/NAME.json [REGEX]

REGEX selects cases by name. (`python -m flash_attn2 bench --show FILE` shows all that there is.)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from flash_attn2.bench import suites
from flash_attn2.bench.record import hardware, read_record
from flash_attn2.bench.report import markdown


def main(path: str, pattern: str = "") -> None:
    report = suites.report(read_record(Path(path)))
    print(f"{report.title}: {hardware(report.record)}\n")
    selected = [one for one in report.outcomes if re.search(pattern, one["case"]["name"])]
    print(markdown(report.compact(selected)))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])

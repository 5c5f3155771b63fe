"""Prints results of `python -m flash_attn2 bench` as Markdown tables.

    python benchmarks/markdown_table.py benchmarks/results/NAME.json [REGEX]

REGEX selects cases by name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from flash_attn2.bench import suites
from flash_attn2.bench.record import hardware, read_record
from flash_attn2.bench.report import markdown


def main(path: str, pattern: str = "") -> None:
    record = read_record(Path(path))
    results = [one for one in record["results"] if re.search(pattern, one["case"]["name"])]
    print(hardware(record))
    for table in suites.report(record | {"results": results}).tables():
        print(f"\n{table.title}\n\n{markdown(table)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])

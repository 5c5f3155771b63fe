"""Compare the machine code of two commits, kernel by kernel.

    python -m tools.cuda_check.compare BEFORE.json AFTER.json [--allowed PERCENT]

Both files are ``report.json`` of ``make cuda-check``. Prints every kernel whose steady loop,
registers or local memory differ, and exits with status 1 if a kernel is missing, has more
instructions per MMA than allowed, or more local memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cuda_check.report import short_name


@dataclass(frozen=True)
class Figures:
    """What is compared of a kernel; no instructions per MMA where there is no such loop."""

    instructions_per_mma: float | None
    local_accesses: int
    registers: int
    stack_bytes: int


def figures(report: dict[str, Any]) -> dict[tuple[str, str], Figures]:
    """By architecture and name, which does not depend on the file that a kernel stands in."""
    found = {}
    for kernel in report["kernels"]:
        loops, resources = kernel["main_loops"], kernel["resources"]
        found[kernel["arch"], short_name(kernel["name"])] = Figures(
            loops[0]["instructions_per_mma"] if loops else None,
            loops[0]["local_accesses"] if loops else 0,
            resources["registers"],
            resources["stack_bytes"],
        )
    return found


def faults(before: Figures, after: Figures, allowed: float) -> list[str]:
    """What got worse, in words."""
    wrong = []
    old, new = before.instructions_per_mma, after.instructions_per_mma
    if old is not None and (new is None or new > old * (1 + allowed / 100)):
        wrong.append("instructions per MMA")
    if after.local_accesses > before.local_accesses or after.stack_bytes > before.stack_bytes:
        wrong.append("local memory")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--allowed", type=float, default=1.0, help="percent more (default: 1)")
    args = parser.parse_args(argv)
    before, after = (figures(json.loads(path.read_text())) for path in (args.before, args.after))
    failures = 0
    same = 0
    for key, old in before.items():
        new = after.get(key)
        wrong = ["missing"] if new is None else faults(old, new, args.allowed)
        failures += bool(wrong)
        same += old == new
        if old != new:
            verdict = f"  FAILED: {', '.join(wrong)}" if wrong else ""
            print(f"sm_{key[0]} {key[1]}\n  {old}\n  {new}{verdict}")
    added = after.keys() - before.keys()
    for arch, name in sorted(added):
        print(f"sm_{arch} {name}: new")
    print(f"{same} of {len(before)} kernels are the same, {len(added)} new, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

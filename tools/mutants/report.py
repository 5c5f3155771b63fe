"""The table and the record of tried faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

OUTCOMES = ("reported", "wrong", "hangs", "survived")


def outcome_of(words: str) -> str:
    """Of a test's first words: whether the emulator found a broken rule, or a result was wrong."""
    return "reported" if "kernel emulator:" in words else "wrong"


def summary(results: Iterable[dict[str, Any]]) -> str:
    """How many were noticed, by unit, by stratum and kind; then the survivors."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    survivors = []
    for result in results:
        stratum, kind, unit = result["stratum"], result["kind"], result["unit"]
        for key in ((stratum, kind), (stratum, ""), ("~all", ""), (f" {unit}", "")):
            counts.setdefault(key, Counter())[result["outcome"]] += 1
        if result["outcome"] == "survived":
            survivors.append(result)
    lines = [f"{'':34}" + "".join(f"{name:>9}" for name in OUTCOMES) + "  noticed"]
    for (stratum, kind), count in sorted(counts.items()):
        name = f"  {kind}" if kind else stratum.strip(" ~")
        rate = 100 * (1 - count["survived"] / count.total())
        lines.append(f"{name:34}" + "".join(f"{count[o]:9}" for o in OUTCOMES) + f"{rate:8.1f}%")
    for r in survivors:
        lines.append(f"{r['number']} {r['kind']}, PTX line {r['line']}, {r['source']}")
        instead = f" -> {r['instead']}" if r["instead"] else ""
        lines.append(f"    {r['instruction']}{instead}    {r['kernel']}")
    return "\n".join(lines)

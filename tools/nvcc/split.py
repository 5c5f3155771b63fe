"""PTX of several translation units that were compiled as one, cut into theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tools.nvcc.units import shared_variable, variant_of_kernel, variant_of_unit

_ENTRY = re.compile(r"(?:\.\w+ )*\.entry (\w+)")


def split_ptx(text: str, units: Sequence[str]) -> dict[str, str]:
    """The PTX of each unit: its kernels, and what does not belong to any.

    Units differ in their variant. ValueError for a kernel that is of none of them, and for a unit
    without kernels.
    """
    unit_of = {variant_of_unit(unit): unit for unit in units}
    if len(unit_of) < len(units):
        raise ValueError(f"units of one variant cannot be told apart: {', '.join(units)}")
    parts: dict[str, list[str]] = {unit: [] for unit in units}
    with_kernels: set[str] = set()
    inside: str | None = None  # a kernel of this unit
    depth = 0  # of braces, which assembly of a kernel has, too
    for line in text.splitlines(keepends=True):
        if entry := _ENTRY.match(line):
            inside = unit_of.get(variant_of_kernel(entry[1]))
            if inside is None:
                raise ValueError(f"{entry[1]} is a kernel of none of {', '.join(units)}")
            with_kernels.add(inside)
        for unit, lines in parts.items():
            if unit == inside or (inside is None and not _of_others(line, unit, units)):
                lines.append(line)
        depth += line.count("{") - line.count("}")
        if depth == 0 and "}" in line:
            inside = None
    if missing := set(units) - with_kernels:
        raise ValueError(f"no kernel of {', '.join(sorted(missing))} in the PTX")
    return {unit: "".join(lines) for unit, lines in parts.items()}


def _of_others(line: str, unit: str, units: Sequence[str]) -> bool:
    """Whether a line outside of kernels declares a variable of another unit."""
    return any(
        re.search(rf"\b{shared_variable(other)}\b", line) for other in units if other != unit
    )

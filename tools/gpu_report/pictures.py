"""Plots of a record, by those of the benchmark's suites, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flash_attn2.bench.attention_report import AttentionReport
from flash_attn2.bench.cases import Case
from flash_attn2.bench.decode.report import DecodeReport
from flash_attn2.bench.modes import MODES
from flash_attn2.bench.report import Report
from flash_attn2.bench.sparse.report import SparseReport
from flash_attn2.bench.suite import Outcome


def write(record: Mapping[str, Any], folder: Path, prefix: str) -> list[Path]:
    """PNG files with such names; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from flash_attn2.bench import plots

    written = []
    timed = [one for one in record["results"] if "contenders" in one]
    for family in dict.fromkeys(_family(one) for one in timed):
        of_family = [one for one in timed if _family(one) == family]
        first = "-".join(filter(None, (prefix, family)))
        for shown in reports(record, of_family):
            for path in plots.write(folder, shown):
                written.append(path.replace(path.with_name(f"{first}-{path.name}")))
    return written


def _family(outcome: Outcome) -> str:
    """Whose kernels were asked for; empty where nobody's were."""
    section: str = outcome["section"]
    return section.partition("-")[2]


def reports(record: Mapping[str, Any], timed: Sequence[Outcome]) -> Iterator[Report]:
    """What each suite shows of such a part of the record."""
    for mode in MODES:
        found = [one for one in timed if one.get("mode") == mode]
        if found:
            yield AttentionReport(_part(record, mode, sorted(found, key=_order)))
    if found := [one for one in timed if _kind(one) == "decode"]:
        yield DecodeReport(_part(record, "decode", found))
    # Of what was measured twice, the second time.
    masked = {one["case"]["name"]: one for one in timed if _kind(one) == "masks"}
    if masked:
        yield SparseReport(_part(record, "sparse", list(masked.values())))


def _kind(outcome: Outcome) -> str:
    section: str = outcome["section"]
    return section.partition("-")[0]


def _order(outcome: Outcome) -> tuple[int, bool, int]:
    """Panels by length and mask, in them head dims."""
    case = Case.of(outcome)
    return case.seqlens[0], case.causal, case.head_dim


def _part(record: Mapping[str, Any], mode: str, results: Sequence[Outcome]) -> dict[str, Any]:
    return {**record, "options": {**record["options"], "mode": mode}, "results": results}

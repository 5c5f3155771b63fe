"""Decoding's tables, and what is said below them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flash_attn2.bench.decode.cases import GROUPS, DecodeCase
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import Report, format_rate
from flash_attn2.bench.suite import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DecodeReport(Report):
    groups = GROUPS
    shape = "batch x keys x heads x head dim"
    title = "Decoding"

    def describe(self, outcome: Outcome) -> tuple[str, str]:
        return DecodeCase.of(outcome).description

    def notes(self) -> Iterator[str]:
        if self.outcomes:
            speeds = [outcome["read"]["bytes_per_second"] for outcome in self.outcomes]
            speed = format_rate(statistics.median(speeds), "B/s")
            shares = [one["contenders"][FLASH_ATTN2]["share_of_memory"] for one in self.outcomes]
            yield (
                f"It reads keys and values at {min(shares):.0%} to {max(shares):.0%} of the speed "
                f"at which memory can be read here, {speed}."
            )
        yield (
            "[dim]One query per sequence; every call reads another layer's cache, so none of it is "
            "in the processor's. SDPA: enable_gqa. SDPA packed: the heads of a group as queries of "
            "one head. Both read a contiguous cache even where flash_attn2 has pages. throughput: "
            "of keys and values that count. of memory: of the speed of a plain sum, measured in "
            "turn with the others. speed-up: their time over flash_attn2's (medians), with the "
            "middle half of the rounds. max error: against float64, on a sample of sequences and "
            "heads.[/]"
        )

    def figures(self) -> Iterator[tuple[str, Figure]]:
        from flash_attn2.bench.decode import plots

        yield from plots.figures(self)

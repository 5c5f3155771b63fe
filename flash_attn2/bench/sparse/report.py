"""The tables of attention with block masks, and what is said below them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import Report
from flash_attn2.bench.sparse.cases import GROUPS, SparseCase
from flash_attn2.bench.suite import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SparseReport(Report):
    groups = GROUPS
    shape = "batch x rows x heads x head dim"
    title = "Block masks"

    def describe(self, outcome: Outcome) -> tuple[str, str]:
        return SparseCase.of(outcome).shape, f"{outcome['needed']:.1%} of the blocks"

    def notes(self) -> Iterator[str]:
        shares = {
            one["case"]["name"]: one["contenders"][FLASH_ATTN2]["share_of_dense"]
            for one in self.outcomes
        }
        if shares:
            worst = min(shares, key=lambda name: shares[name])
            yield (
                f"It computes the blocks of 64 x 64 pairs that a mask needs at {shares[worst]:.0%} "
                f"({worst}) to {max(shares.values()):.0%} of its own rate without a mask."
            )
        yield (
            "[dim]without a mask: flash_attn2, dense. of dense: time without a mask over time with "
            "it, times the share of blocks of 64 x 64 pairs in which something is visible. "
            "throughput: of visible pairs. SDPA: with a mask of booleans. flex_attention: compiled,"
            " by the best of blocks of 64, 128 and 256. Masks and compilation are prepared before "
            "the clock starts. speed-up: their time over flash_attn2's (medians), with the middle "
            "half of the rounds. max error: against float64, on a sample of rows.[/]"
        )

    def figures(self) -> Iterator[tuple[str, Figure]]:
        from flash_attn2.bench.sparse import plots

        yield from plots.figures(self)

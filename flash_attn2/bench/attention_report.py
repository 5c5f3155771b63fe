"""Self-attention's tables, and what is said below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flash_attn2.bench.cases import Case
from flash_attn2.bench.modes import MODES
from flash_attn2.bench.report import Report
from flash_attn2.bench.suite import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AttentionReport(Report):
    groups: Mapping[str, str] = {
        "head_dim": "head dimensions",
        "seqlen": "sequence lengths",
        "model": "models",
    }
    shape = "batch x rows x heads x head dim"

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self.mode = MODES[record["options"]["mode"]]

    @property
    def title(self) -> str:
        return self.mode.title

    def describe(self, outcome: Outcome) -> tuple[str, str]:
        return Case.of(outcome).description

    def notes(self) -> Iterator[str]:
        sampled = sum(outcome["share_checked"] < 1 for outcome in self.outcomes)
        sample = f", on a sample of the heads and rows in {sampled} cases" if sampled else ""
        passes = ", of both passes" if self.mode.gradients else ""
        what = " of the gradients" if self.mode.gradients else ""
        yield (
            "[dim]loop: sequence by sequence. padded: to the longest sequence, with a mask. mask: "
            "the window as a matrix of booleans. speed-up: their time over flash_attn2's "
            "(medians), with the middle half of the rounds. extra memory: peak beyond the "
            f"inputs{passes}. "
            f"max error{what}: against float64{sample}.[/]"
        )

    def figures(self) -> Iterator[tuple[str, Figure]]:
        from flash_attn2.bench import attention_plots

        yield from attention_plots.figures(self)

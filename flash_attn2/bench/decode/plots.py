"""A plot of decoding: the speed at which keys and values are read, by what each sweep varies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from flash_attn2.bench import plots
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.report import DecodeReport
from flash_attn2.bench.report import format_rate, measured
from flash_attn2.bench.suite import Outcome

_RATE = "bytes_per_second"
_READING: dict[str, Any] = {"color": "#555555", "linestyle": ":", "label": "reading memory"}


def figures(report: DecodeReport) -> Iterator[tuple[str, Figure]]:
    """A row of panels per dtype, a column per group of cases (and length)."""
    dtypes = list(dict.fromkeys(outcome["case"]["dtype"] for outcome in report.outcomes))
    columns = plots.facets(report.outcomes, _sweep)
    if not dtypes:
        return
    figure, grid = plots.panels(
        report,
        len(dtypes),
        len(columns),
        (3.4, 2.8),
        title="keys and values read per second",
        about=_heads(report),
        note=(
            "One query per sequence; bytes of keys and values that count, each once, from caches "
            "that are not in the processor's. Bars at the points: the middle half of the samples. "
            "Reading memory: a plain sum, in turn with the others. SDPA reads a contiguous cache "
            "everywhere."
        ),
        legend=[*plots.lines(report, report.outcomes), Line2D([], [], **_READING)],
        sharex="col",
        sharey="row",
    )
    for line, dtype in zip(grid, dtypes, strict=True):
        for axes, (title, outcomes) in zip(line, columns.items(), strict=True):
            _plot(axes, report, [one for one in outcomes if one["case"]["dtype"] == dtype])
            axes.set(title=f"{dtype}\n{title}", xlabel=report.groups[outcomes[0]["case"]["group"]])
        line[0].set_ylabel("throughput  (higher is better →)")
        line[0].yaxis.set_major_formatter(FuncFormatter(lambda rate, _: format_rate(rate, "B/s")))
        line[0].set_ylim(bottom=0)
    yield "decode", figure


def _sweep(outcome: Outcome) -> str:
    """What a panel's cases have in common."""
    case = DecodeCase.of(outcome)
    common = {
        "batch": f"batch {case.batch}",
        "kv_length": f"{case.seqlen_k} keys",
        "page_size": "contiguous",
    }
    return ", ".join(text for group, text in common.items() if group != case.group)


def _heads(report: DecodeReport) -> str:
    cases = [DecodeCase.of(outcome) for outcome in report.outcomes]
    case = next((case for case in cases if case.group != "group"), cases[0])
    return f"{case.num_heads}/{case.num_heads_kv} heads of {case.head_dim} where not said otherwise"


def _plot(axes: Axes, report: DecodeReport, outcomes: Sequence[Outcome]) -> None:
    for name in report.contenders:
        spreads = [
            (place, *plots.spread(outcome, name, _RATE))
            for place, outcome in enumerate(outcomes)
            if name in measured(outcome)
        ]
        plots.curve(axes, report, name, spreads)
    axes.plot([outcome["read"][_RATE] for outcome in outcomes], **_READING)
    varied = [DecodeCase.of(outcome).varied for outcome in outcomes]
    labels = ["none" if not value else plots.short(value) for value in varied]
    axes.set_xticks(range(len(outcomes)), labels)

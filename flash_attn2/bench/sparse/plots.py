"""A plot of attention with block masks: time by length, a panel for each pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flash_attn2.bench import plots
from flash_attn2.bench.report import format_time, measured
from flash_attn2.bench.sparse.report import SparseReport
from flash_attn2.bench.suite import Outcome


def figures(report: SparseReport) -> Iterator[tuple[str, Figure]]:
    """For each pass: a row of panels per dtype, a column per pattern."""
    for group, title in report.groups.items():
        outcomes = report.group(group)
        if not outcomes:
            continue
        dtypes = plots.facets(outcomes, lambda outcome: outcome["case"]["dtype"])
        columns = plots.facets(outcomes, lambda outcome: outcome["case"]["pattern"])
        figure, grid = plots.panels(
            report,
            len(dtypes),
            len(columns),
            (2.6, 2.6),
            title=f"{title}, time by length",
            about=_heads(outcomes),
            note=(
                "One sequence. Bars at the points: the middle half of the samples. Masks are made "
                "and kernels compiled before the clock starts."
            ),
            legend=plots.lines(report, outcomes),
            sharex=True,
            sharey="row",
        )
        for line, dtype in zip(grid, dtypes, strict=True):
            for axes, (pattern, members) in zip(line, columns.items(), strict=True):
                _plot(axes, report, [one for one in members if one["case"]["dtype"] == dtype])
                axes.set(title=f"{dtype}\n{pattern}", xlabel="tokens")
            line[0].set_ylabel("time  (lower is better ↓)")
            plots.log_ticks(line[0].yaxis, 10, lambda seconds: format_time(seconds))
        yield f"sparse-{group.replace('+', '-')}", figure


def _heads(outcomes: Sequence[Outcome]) -> str:
    shapes = {(one["case"]["num_heads"], one["case"]["head_dim"]) for one in outcomes}
    return ", ".join(f"{heads} heads of {dim}" for heads, dim in sorted(shapes))


def _plot(axes: Axes, report: SparseReport, outcomes: Sequence[Outcome]) -> None:
    axes.set(xscale="log", yscale="log")
    for name in report.contenders:
        points = [
            (one["case"]["seqlen"], *plots.spread(one, name, "seconds"))
            for one in outcomes
            if name in measured(one)
        ]
        plots.curve(axes, report, name, points)
    lengths = sorted({one["case"]["seqlen"] for one in outcomes})
    axes.set_xticks(lengths, [plots.short(length) for length in lengths], minor=False)
    axes.minorticks_off()
    axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)

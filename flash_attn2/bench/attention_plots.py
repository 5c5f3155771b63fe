"""Plots of self-attention: throughput by head dim, time and memory by length, ratios of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from flash_attn2.bench import plots
from flash_attn2.bench.attention_report import AttentionReport
from flash_attn2.bench.cases import DTYPES, Case
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import format_bytes, format_rate, format_time, measured
from flash_attn2.bench.suite import Outcome
from flash_attn2.bench.suites import suffix

_RATE = "flops_per_second"
_WIDEST = 4  # panels side by side


def figures(report: AttentionReport) -> Iterator[tuple[str, Figure]]:
    """One for each group of cases that was measured, and dtype, where it would become too wide."""
    end = suffix(report.mode.name)
    if members := report.group("head_dim"):
        yield f"head_dims{end}", _head_dims(report, members)
    if members := report.group("seqlen"):
        parts = plots.facets(members, _dtype)
        if len(plots.facets(members, _facet)) <= _WIDEST:
            parts = {"": members}
        for dtype, part in parts.items():
            yield f"seqlens{end}{dtype and '-' + DTYPES[dtype]}", _seqlens(report, part)
    if members := report.group("model"):
        yield f"models{end}", _models(report, members)


def _dtype(outcome: Outcome) -> str:
    return str(outcome["case"]["dtype"])


def _facet(outcome: Outcome) -> str:
    """The panel that shows a case of a sweep: the value of the other sweep is the same in it."""
    case = Case.of(outcome)
    other = f"head dim {case.widths}" if case.group == "seqlen" else f"length {case.seqlens[0]}"
    return f"{case.dtype}, {'causal' if case.causal else 'full'}, {other}"


def _shapes(outcomes: Sequence[Outcome]) -> str:
    """Batch and heads, or what of them is the same everywhere."""
    cases = [Case.of(outcome) for outcome in outcomes]
    parts = []
    for choices in (
        (
            ("batch {}", {len(case.seqlens) for case in cases}),
            ("batch x sequence length = {}", {case.total for case in cases}),
        ),
        (
            ("{} heads", {case.num_heads for case in cases}),
            ("heads x head dim = {}", {case.num_heads * case.head_dim for case in cases}),
        ),
    ):
        parts += [text.format(*values) for text, values in choices if len(values) == 1][:1]
    return ", ".join(parts)


def _head_dims(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """Throughput against head dimension: grouped bars, one panel per dtype, mask and length."""
    facets = plots.facets(outcomes, _facet)
    columns = min(len(facets), 2)
    passes = f", times {report.mode.flops} for {report.mode.name}" if report.mode.gradients else ""
    two_widths = any(case.head_dim_v for case in map(Case.of, outcomes))
    pairs = ", with two widths each product's own" if two_widths else ""
    figure, grid = plots.panels(
        report,
        -(-len(facets) // columns),
        columns,
        (6.2 if columns > 1 else 9.0, 3.1),
        title="throughput by head dim",
        about=_shapes(outcomes),
        note=(
            "FLOP: 4 · head dim for each query and visible key (causal: half of the square)"
            f"{passes}{pairs}, whatever a contender computes.\nAbove the bars: how many times as "
            "fast as SDPA. Vertical lines: the middle half of the samples."
        ),
        legend=plots.patches(report, report.contenders),
        sharey=True,
    )
    all_axes = [axes for line in grid for axes in line]
    for axes, (facet, members) in zip(all_axes, facets.items(), strict=False):
        for index, name in enumerate(report.contenders):
            _bars(axes, report, name, members, index)
        axes.set_xticks(range(len(members)), [str(Case.of(one).widths) for one in members])
        axes.set(title=facet, xlabel="head dim")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
    for axes in all_axes[len(facets) :]:
        axes.remove()
    for line in grid:
        line[0].set_ylabel("throughput  (higher is better →)")
        line[0].yaxis.set_major_formatter(
            FuncFormatter(lambda rate, _: format_rate(rate, "FLOP/s"))
        )
    return figure


def _bars(
    axes: Axes, report: AttentionReport, name: str, outcomes: Sequence[Outcome], index: int
) -> None:
    width = 0.8 / len(report.contenders)
    for place, outcome in enumerate(outcomes):
        if name not in measured(outcome):
            continue
        x = place + (index - (len(report.contenders) - 1) / 2) * width
        value, low, high = plots.spread(outcome, name, _RATE)
        axes.bar(x, value, width * 0.94, color=plots.look(report, name)[0])
        axes.vlines(x, low, high, **plots.SPREAD)
        if name == FLASH_ATTN2 and SDPA in measured(outcome):
            text = plots.times_label(outcome["contenders"][SDPA]["ratio"]["value"])
            above: Any = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
            axes.annotate(text, (x, max(value, high)), size=8.5, weight="bold", **above)


def _seqlens(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """Time and peak extra memory against sequence length: a column per dtype, mask, head dim."""
    facets = plots.facets(outcomes, _facet)
    kept = ", what the forward pass keeps" if report.mode.gradients else ""
    figure, grid = plots.panels(
        report,
        2,
        len(facets),
        (6.2 if len(facets) < 3 else 3.9, 2.7),
        title="time and memory by sequence length",
        about=_shapes(outcomes),
        note=(
            f"Extra memory: the peak beyond the inputs (output, masks, workspaces{kept}). "
            "Bars at the points: the middle half of the samples. Both axes are logarithmic."
        ),
        legend=plots.lines(report, outcomes),
        sharex=True,
        sharey="row",
    )
    for (facet, members), times, sizes in zip(facets.items(), *grid, strict=True):
        for name in report.contenders:
            ran = {one["case"]["seqlens"][0]: one for one in members if name in measured(one)}
            spreads = [(x, *plots.spread(one, name, "seconds")) for x, one in ran.items()]
            plots.curve(times, report, name, spreads)
            peaks = {x: one["contenders"][name].get("extra_bytes") for x, one in ran.items()}
            plots.curve(sizes, report, name, [(x, y, y, y) for x, y in peaks.items() if y])
        times.set_title(facet)
        sizes.set_xlabel("sequence length")
    times, sizes = grid[0][0], grid[1][0]
    times.set(xscale="log", yscale="log", ylabel="time  (← lower is better)")
    sizes.set(yscale="log", ylabel="extra memory  (← lower is better)")
    plots.log_ticks(times.yaxis, 10, format_time)
    plots.log_ticks(sizes.yaxis, 4, format_bytes)
    lengths = sorted({one["case"]["seqlens"][0] for one in outcomes})
    times.set_xticks(lengths, [plots.short(length) for length in lengths])
    times.xaxis.set_minor_locator(NullLocator())
    return figure


def _models(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """How many times as fast flash_attn2 is in each model: horizontal bars, logarithmic."""
    facets = plots.facets(outcomes, _dtype)
    labels = {_model(one): f"{_model(one)}\n{', '.join(report.describe(one))}" for one in outcomes}
    figure, grid = plots.panels(
        report,
        1,
        len(facets),
        (11.0 if len(facets) == 1 else 6.5, 0.42 * len(labels) + 0.6),
        title="flash_attn2 against its peers at the shapes of models",
        about="",
        note=(
            "Batch x rows x heads (query/key) x head dim, mask. Packed documents: rows in all, in "
            "how many documents. Right: flash_attn2's time. Ratios of median times; lines: the "
            "middle half of the rounds. n/a: it cannot run the case, or is left out as too large."
        ),
        legend=plots.patches(report, report.peers),
        sharex=True,
        sharey=True,
    )
    places = {name: place for place, name in enumerate(labels)}
    for axes, (dtype, members) in zip(grid[0], facets.items(), strict=True):
        for outcome in members:
            _ratios(axes, report, outcome, places[_model(outcome)])
        axes.axvline(1, color=plots.look(report, FLASH_ATTN2)[0], linewidth=1.5)
        axes.grid(axis="y", visible=False)
        axes.set(title=dtype, xlabel="their time over flash_attn2's  (longer is better →)")
    first = grid[0][0]
    first.set_yticks(range(len(labels)), list(labels.values()), size=8.5)
    first.set_ylim(len(labels) - 0.5, -0.5)
    first.set_xscale("log", base=2)
    low, high = first.get_xlim()
    first.set_xlim(min(low, 0.95), high * 2)  # room for the times
    plots.log_ticks(first.xaxis, 2, lambda ratio: f"{ratio:g}x")
    return figure


def _model(outcome: Outcome) -> str:
    name: str = outcome["case"]["name"]
    return name.rpartition("/")[0]


def _ratios(axes: Axes, report: AttentionReport, outcome: Outcome, place: int) -> None:
    height = 0.8 / len(report.peers)
    for index, name in enumerate(report.peers):
        y = place + (index - (len(report.peers) - 1) / 2) * height
        text, end = "n/a", 1.0
        if name in measured(outcome):
            ratio = outcome["contenders"][name]["ratio"]
            color = plots.look(report, name)[0]
            axes.barh(y, ratio["value"] - 1, height * 0.92, left=1, color=color)
            axes.hlines(y, ratio["low"], ratio["high"], **plots.SPREAD)
            text, end = plots.times_label(ratio["value"]), max(1.0, *ratio.values())
        axes.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", size=8.5)
    time = format_time(outcome["contenders"][FLASH_ATTN2]["seconds"])
    right: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(1, place, time, size=8.5, bbox=box, **right)

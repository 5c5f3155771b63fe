"""Plots of self-attention: throughput by head dim, time and memory by length, ratios of models."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from flash_attn2.bench import plots
from flash_attn2.bench.attention_report import AttentionReport
from flash_attn2.bench.cases import DTYPES, Case
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import hardware
from flash_attn2.bench.report import format_time, measured, throughput_unit
from flash_attn2.bench.suite import Outcome
from flash_attn2.bench.suites import suffix

_RATE = "flops_per_second"
_WIDEST = 4  # panels side by side
_MIDDLE = "Vertical bars: the middle half of the samples."


def figures(report: AttentionReport) -> Iterator[tuple[str, Figure]]:
    """One for each group of cases that was measured."""
    end = suffix(report.mode.name)
    if members := report.group("head_dim"):
        yield f"head_dims{end}", _head_dims(report, members)
    if members := report.group("seqlen"):
        dtypes = plots.facets(members, _dtype)
        if len(plots.facets(members, _facet)) <= _WIDEST:
            dtypes = {"": members}
        for dtype, parts in dtypes.items():
            yield f"seqlens{end}{dtype and '-' + DTYPES[dtype]}", _seqlens(report, parts)
    if members := report.group("model"):
        yield f"models{end}", _models(report, members)


def _dtype(outcome: Outcome) -> str:
    return str(outcome["case"]["dtype"])


def _facet(outcome: Outcome) -> str:
    case = Case.of(outcome)
    return f"{case.dtype}, {_mask(case)}, head dim {case.head_dim}"


def _mask(case: Case) -> str:
    return "causal" if case.causal else "full"


def _about(report: AttentionReport, outcomes: Sequence[Outcome]) -> str:
    """The shapes, as far as they are the same everywhere, and the machine."""
    cases = [Case.of(outcome) for outcome in outcomes]
    batch = plots.only(len(case.seqlens) for case in cases)
    heads = plots.only((case.num_heads, case.num_heads_kv) for case in cases)
    seqlen = plots.only(case.seqlens[0] for case in cases)
    rows = plots.only(case.total for case in cases)
    width = plots.only(case.num_heads * case.head_dim for case in cases)
    parts = []
    if batch:
        parts.append(f"batch {batch}")
    elif rows:
        parts.append(f"batch x sequence length = {rows}")
    if seqlen:
        parts.append(f"sequence length {seqlen}")
    if heads:
        parts.append(f"{heads[0]} heads")
    elif width:
        parts.append(f"heads x head dim = {width}")
    return f"{', '.join(parts)}   |   {hardware(report.record)}"


def _flops(report: AttentionReport) -> str:
    """What counts as an operation."""
    passes = (
        "" if report.mode.flops == 1 else f", times {report.mode.flops:g} for {report.mode.name}"
    )
    return (
        "FLOP: 4 · head dim for each query and visible key (causal: half of the square)"
        f"{passes}, whatever a contender computes."
    )


def _head_dims(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """Throughput against head dimension: grouped bars, one panel per dtype, mask and length."""
    lengths = {Case.of(outcome).seqlens[0] for outcome in outcomes}

    def title(outcome: Outcome) -> str:
        case = Case.of(outcome)
        length = f", length {case.seqlens[0]}" if len(lengths) > 1 else ""
        return f"{case.dtype}, {_mask(case)}{length}"

    facets = plots.facets(outcomes, title)
    columns = min(len(facets), 2)
    unit, size = throughput_unit(outcomes, _RATE, "FLOP")
    figure, grid = plots.panels(
        -(-len(facets) // columns),
        columns,
        (6.2 if columns > 1 else 9.0, 3.1),
        title=f"{report.title}: throughput by head dim",
        about=_about(report, outcomes),
        note=f"{_flops(report)}\nAbove the bars: how many times as fast as SDPA. {_MIDDLE}",
        share_y=True,
    )
    axes_list = [axes for line in grid for axes in line]
    for axes, (facet, members) in zip(axes_list, facets.items(), strict=False):
        _bars(axes, report, members, size)
        axes.set_xticks(range(len(members)), [str(one["case"]["head_dim"]) for one in members])
        axes.set(title=facet, xlabel="head dim")
        axes.grid(axis="x", visible=False)
    for axes in axes_list[len(facets) :]:
        axes.remove()
    for line in grid:
        line[0].set_ylabel(f"{unit}  (higher is better →)")
    plots.legend(
        figure, [plots.key(name, report.contenders, marker=False) for name in report.contenders]
    )
    return figure


def _bars(axes: Axes, report: AttentionReport, outcomes: Sequence[Outcome], size: float) -> None:
    names = report.contenders
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        shift = (index - (len(names) - 1) / 2) * width
        for position, outcome in enumerate(outcomes):
            if name not in measured(outcome):
                continue
            value, low, high = (x / size for x in plots.rate(outcome, name, _RATE))
            axes.bar(position + shift, value, width * 0.94, color=plots.look(name, names)[0])
            axes.vlines(position + shift, low, high, **plots.SPREAD)
            if name == FLASH_ATTN2 and SDPA in measured(outcome):
                ratio = outcome["contenders"][SDPA]["ratio"]["value"]
                axes.annotate(
                    plots.times_label(ratio),
                    (position + shift, max(value, high)),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    size=8.5,
                    weight="bold",
                )
    axes.margins(y=0.1)


def _seqlens(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """Time and peak extra memory against sequence length: a column per dtype, mask, head dim."""
    facets = plots.facets(outcomes, _facet)
    figure, grid = plots.panels(
        2,
        len(facets),
        (6.2 if len(facets) < 3 else 3.9, 2.7),
        title=f"{report.title}: time and memory by sequence length",
        about=_about(report, outcomes),
        note=(
            "Extra memory: the peak beyond the inputs (output, masks, workspaces"
            f"{', what the forward pass keeps' if report.mode.gradients else ''}). "
            "Bars at the points: the middle half of the samples. Both axes are logarithmic."
        ),
        share_x=True,
        share_y="row",
    )
    names = report.contenders
    for column, (facet, members) in enumerate(facets.items()):
        for name in names:
            for line, value, spread in (
                (grid[0], "seconds", functools.partial(plots.middle, name=name)),
                (grid[1], "extra_bytes", None),
            ):
                point = functools.partial(_point, name=name, value=value)
                plots.curve(line[column], members, name, names, point, spread)
        grid[0][column].set_title(facet)
        grid[1][column].set_xlabel("sequence length")
    lengths = sorted({_seqlen(outcome) for outcome in outcomes})
    for line, base, label, of_axis in (
        (grid[0], 10, plots.time_label, "time  (← lower is better)"),
        (grid[1], 4, plots.memory_label, "extra memory  (← lower is better)"),
    ):
        line[0].set_xscale("log", base=2)
        line[0].set_yscale("log")
        plots.log_ticks(line[0].yaxis, base, label)
        line[0].set_ylabel(of_axis)
    grid[0][0].set_xticks(lengths, [plots.short(length) for length in lengths])
    grid[0][0].xaxis.set_minor_locator(NullLocator())
    plots.legend(figure, [plots.key(name, names) for name in names])
    return figure


def _point(outcome: Outcome, name: str, value: str) -> tuple[float, float] | None:
    y = outcome["contenders"][name].get(value)
    return None if y is None else (_seqlen(outcome), y)


def _seqlen(outcome: Outcome) -> int:
    length: int = outcome["case"]["seqlens"][0]
    return length


def _models(report: AttentionReport, outcomes: Sequence[Outcome]) -> Figure:
    """How many times as fast flash_attn2 is in each model: horizontal bars, logarithmic."""
    facets = plots.facets(outcomes, _dtype)
    labels = {_model(outcome): _label(outcome) for outcome in outcomes}
    figure, grid = plots.panels(
        1,
        len(facets),
        (11.0 if len(facets) == 1 else 6.5, 0.42 * len(labels) + 0.6),
        title=f"{report.title}: flash_attn2 against its peers at the shapes of models",
        about=hardware(report.record),
        note=(
            "Batch x rows x heads (query/key) x head dim, mask. Packed documents: rows in all, in "
            "how many documents. Right: flash_attn2's time. Ratios of median times; lines: the "
            "middle half of the rounds. n/a: it cannot run the case, or is left out as too large."
        ),
        share_x=True,
        share_y=True,
    )
    for axes, (dtype, members) in zip(grid[0], facets.items(), strict=True):
        places = {name: place for place, name in enumerate(labels)}
        for outcome in members:
            _ratios(axes, report, outcome, places[_model(outcome)])
        axes.axvline(1, color=plots.look(FLASH_ATTN2, ())[0], linewidth=1.5)
        axes.grid(axis="y", visible=False)
        axes.set(title=dtype, xlabel="their time over flash_attn2's  (longer is better →)")
    first = grid[0][0]
    first.set_yticks(range(len(labels)), list(labels.values()), size=8.5)
    first.set_ylim(len(labels) - 0.5, -0.5)
    first.set_xscale("log", base=2)
    low, high = first.get_xlim()
    first.set_xlim(min(low, 0.95), high * 2.0)
    plots.log_ticks(first.xaxis, 2, lambda ratio: f"{ratio:g}x")
    names = report.contenders
    plots.legend(figure, [plots.key(name, names, marker=False) for name in report.peers])
    return figure


def _model(outcome: Outcome) -> str:
    name: str = outcome["case"]["name"]
    return name.rpartition("/")[0]


def _ratios(axes: Axes, report: AttentionReport, outcome: Outcome, place: int) -> None:
    height = 0.8 / len(report.peers)
    for index, name in enumerate(report.peers):
        y = place + (index - (len(report.peers) - 1) / 2) * height
        if name not in measured(outcome):
            _note(axes, "n/a", 1, y)
            continue
        ratio = outcome["contenders"][name]["ratio"]
        color = plots.look(name, report.contenders)[0]
        axes.barh(y, ratio["value"] - 1, height * 0.92, left=1, color=color)
        axes.hlines(y, ratio["low"], ratio["high"], **plots.SPREAD)
        end = max(ratio["value"], ratio["high"], 1)
        _note(axes, plots.times_label(ratio["value"]), end, y)
    time = format_time(outcome["contenders"][FLASH_ATTN2]["seconds"])
    column = axes.get_yaxis_transform()
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(1, place, time, transform=column, va="center", ha="right", size=8.5, bbox=box)


def _note(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", size=8.5)


def _label(outcome: Outcome) -> str:
    shape, options = Case.of(outcome).description
    return f"{_model(outcome)}\n{shape}, {options}"

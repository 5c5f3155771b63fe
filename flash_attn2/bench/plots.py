"""PNG plots of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from flash_attn2.bench.contenders import CONTENDERS, FLASH_ATTN2, SDPA, STANDARD
from flash_attn2.bench.modes import Mode
from flash_attn2.bench.report import throughput_unit
from flash_attn2.bench.runner import Result

COLORS = {FLASH_ATTN2: "#d1495b", SDPA: "#30638e", STANDARD: "#9aa5b1"}
MARKERS = {FLASH_ATTN2: "o", SDPA: "s", STANDARD: "^"}
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "figure.titlesize": 10.0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def write_plots(folder: Path, results: Sequence[Result], machine: str, mode: Mode) -> list[Path]:
    """Writes a plot for each group of cases that was measured; returns the files."""
    plots = {
        "head_dim": ("head_dims", _plot_head_dims),
        "seqlen": ("seqlens", _plot_seqlens),
        "model": ("models", _plot_models),
    }
    written = []
    with mpl.rc_context(STYLE):
        for group, (name, plot) in plots.items():
            members = [result for result in results if result.case.group == group]
            if members:
                path = folder / f"{name}{mode.suffix}.png"
                plot(members, mode.title, machine).savefig(path)
                written.append(path)
    return written


def _facets(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by dtype and mask (and head dim, for the sequence-length sweep)."""
    facets: dict[str, list[Result]] = {}
    for result in results:
        case = result.case
        title = f"{case.dtype}, {'causal' if case.causal else 'full'}"
        if case.group == "seqlen":
            title += f", head dim {case.head_dim}"
        facets.setdefault(title, []).append(result)
    return facets


def _figure(columns: int, rows: int, title: str) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(4.2 * columns + 0.4, 2.8 * rows + 1.0))
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _plot_head_dims(results: Sequence[Result], title: str, machine: str) -> Figure:
    """Throughput against head dimension: grouped bars, one panel per dtype and mask."""
    facets = _facets(results)
    columns = min(len(facets), 2)
    rows = -(-len(facets) // columns)
    seqlen = results[0].case.seqlens[0]
    unit, flops = throughput_unit(results)
    figure, grid = _figure(columns, rows, f"{title}, sequence length {seqlen}\n{machine}")
    panels = [axes for line in grid for axes in line]
    width = 0.8 / len(CONTENDERS)
    for axes, (facet, members) in zip(panels, facets.items(), strict=False):
        for index, name in enumerate(CONTENDERS):
            bars = {
                position: result.measurements[name].flops_per_second / flops
                for position, result in enumerate(members)
                if name in result.measurements
            }
            shift = (index - (len(CONTENDERS) - 1) / 2) * width
            axes.bar(
                [position + shift for position in bars],
                list(bars.values()),
                width,
                color=COLORS[name],
                label=name,
            )
        axes.set_xticks(range(len(members)), [str(result.case.head_dim) for result in members])
        axes.set(title=facet, xlabel="head dim")
        axes.grid(axis="x", visible=False)
    for line in grid:
        line[0].set_ylabel(unit)
    for axes in panels[len(facets) :]:
        axes.remove()
    figure_legend(figure, panels[0])
    return figure


def _plot_seqlens(results: Sequence[Result], title: str, machine: str) -> Figure:
    """Time and peak extra memory against sequence length: a column per dtype, mask, head dim."""
    facets = _facets(results)
    figure, grid = _figure(len(facets), 2, f"{title} against sequence length\n{machine}")
    for column, (facet, members) in enumerate(facets.items()):
        time_axes, memory_axes = grid[0][column], grid[1][column]
        _lines(time_axes, members, lambda result, name: result.measurements[name].seconds)
        _lines(memory_axes, members, lambda result, name: result.measurements[name].extra_bytes)
        time_axes.set_title(facet)
        memory_axes.set_xlabel("sequence length")
        time_axes.yaxis.set_major_formatter(FuncFormatter(_time_label))
        memory_axes.yaxis.set_major_locator(LogLocator(base=4, numticks=9))
        memory_axes.yaxis.set_major_formatter(FuncFormatter(_memory_label))
    grid[0][0].set_ylabel("time")
    grid[1][0].set_ylabel("peak extra memory")
    figure_legend(figure, grid[0][0])
    return figure


def _lines(
    axes: Axes, results: Sequence[Result], value: Callable[[Result, str], float | None]
) -> None:
    for name in CONTENDERS:
        points = [
            (result.case.seqlens[0], y)
            for result in results
            if name in result.measurements and (y := value(result, name)) is not None
        ]
        if points:
            axes.plot(
                *zip(*sorted(points), strict=True),
                color=COLORS[name],
                marker=MARKERS[name],
                markersize=4,
                zorder=3 if name == FLASH_ATTN2 else 2,
                label=name,
            )
    seqlens = sorted({result.case.seqlens[0] for result in results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(seqlens, [short(seqlen) for seqlen in seqlens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _time_label(seconds: float, _: int | None = None) -> str:
    return _scaled(seconds * 1e9, 1000, ("ns", "µs", "ms", "s"))


def _memory_label(size: float, _: int | None = None) -> str:
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    """`value`, in the first of `units`, in the largest one that keeps it at 1 or above."""
    for unit in units[:-1]:
        if value < base * 0.999:
            return f"{value:g} {unit}"
        value /= base
    return f"{value:g} {units[-1]}"


def short(seqlen: int) -> str:
    return f"{seqlen // 1024}k" if seqlen >= 1024 and seqlen % 1024 == 0 else str(seqlen)


def _plot_models(results: Sequence[Result], title: str, machine: str) -> Figure:
    """How much faster flash_attn2 is in each model: horizontal bars, logarithmic."""
    figure = Figure(figsize=(8.0, 0.42 * len(results) + 1.6))
    figure.suptitle(f"{title} at the shapes of real models\n{machine}")
    axes = figure.subplots()
    height = 0.38
    for index, name in enumerate((SDPA, STANDARD)):
        for position, result in enumerate(results):
            y = position + (index - 0.5) * height
            if name not in result.ratios:
                axes.text(1.02, y, "n/a", va="center", size=7, color="#777777")
                continue
            ratio = result.ratios[name].value
            axes.barh(y, ratio - 1, height, left=1, color=COLORS[name])
            axes.text(max(ratio, 1) * 1.02, y, f"{ratio:.2f}x", va="center", size=7)
    axes.axvline(1, color=COLORS[FLASH_ATTN2], linewidth=1.5)
    axes.set_yticks(range(len(results)), [result.case.name for result in results])
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("time over flash_attn2's time (more than 1: flash_attn2 is faster)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    handles = [Patch(color=COLORS[name], label=name) for name in (SDPA, STANDARD)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def figure_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))

"""A PNG plot of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flash_attn2.bench.contenders import FLASH_ATTN2
from flash_attn2.bench.decode.cases import GROUPS
from flash_attn2.bench.decode.contenders import CONTENDERS, SDPA_PACKED
from flash_attn2.bench.decode.runner import Result
from flash_attn2.bench.plots import COLORS, MARKERS, STYLE, figure_legend, short

_COLORS = COLORS | {SDPA_PACKED: "#73a9cf"}
_MARKERS = MARKERS | {SDPA_PACKED: "D"}


def write_plots(folder: Path, results: Sequence[Result], machine: str) -> list[Path]:
    """GB/s of keys and values: a row of panels per dtype, a column per group of cases."""
    dtypes = list(dict.fromkeys(result.case.dtype for result in results))
    groups = [group for group in GROUPS if any(r.case.group == group for r in results)]
    path = folder / "decode.png"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(groups) + 0.4, 2.8 * len(dtypes) + 1.0))
        figure.suptitle(f"Decoding: keys and values read per second\n{machine}")
        grid = figure.subplots(len(dtypes), len(groups), squeeze=False).tolist()
        for line, dtype in zip(grid, dtypes, strict=True):
            for axes, group in zip(line, groups, strict=True):
                members = [r for r in results if r.case.dtype == dtype and r.case.group == group]
                if members:
                    _plot(axes, members)
                axes.set(title=dtype, xlabel=GROUPS[group])
            line[0].set_ylabel("GB/s")
        figure_legend(figure, grid[0][0])
        figure.savefig(path)
    return [path]


def _plot(axes: Axes, results: Sequence[Result]) -> None:
    for name in CONTENDERS:
        points = {
            position: result.measurements[name].bytes_per_second / 1e9
            for position, result in enumerate(results)
            if name in result.measurements
        }
        axes.plot(
            list(points),
            list(points.values()),
            color=_COLORS[name],
            marker=_MARKERS[name],
            markersize=4,
            zorder=3 if name == FLASH_ATTN2 else 2,
            label=name,
        )
    bandwidth = [result.read_bytes_per_second / 1e9 for result in results]
    axes.plot(
        range(len(results)), bandwidth, color="#555555", linestyle=":", label="reading memory"
    )
    axes.set_xticks(range(len(results)), [_label(result) for result in results])
    axes.set_ylim(bottom=0)


def _label(result: Result) -> str:
    if result.case.group == "page_size" and not result.case.page_size:
        return "none"
    return short(result.case.varied)

"""What the plots of all suites have in common: a frame that says it all, error bars, log ticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flash_attn2.bench import timing
from flash_attn2.bench.contenders import SDPA, STANDARD
from flash_attn2.bench.decode.contenders import SDPA_PACKED
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import Report, measured
from flash_attn2.bench.suite import Outcome

STYLE: Any = {
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "savefig.dpi": 160,
}
GRAY, DARK = "#6b7280", "#333333"
_LOOKS = {  # color and marker
    FLASH_ATTN2: ("#d1495b", "o"),
    SDPA: ("#30638e", "s"),
    SDPA_PACKED: ("#73a9cf", "D"),
    STANDARD: ("#9aa5b1", "^"),
}
_MORE_LOOKS = (("#edae49", "v"), ("#66a182", "P"), ("#8d6a9f", "X"), ("#4c3b4d", "*"))

# Inches: what stands above and below the panels.
_HEADER, _FOOTER_LINE = 0.95, 0.17
_CHARACTER = 0.062  # width, in the notes

_TICKS = 8  # at most, on a logarithmic axis
# Of the lines that show a spread: seen on bars of any color.
SPREAD: Any = {
    "color": DARK,
    "linewidth": 1.3,
    "path_effects": [Stroke(linewidth=2.6, foreground="white"), Normal()],
    "zorder": 4,
}


def write(folder: Path, report: Report) -> list[Path]:
    """Writes a PNG for each of the report's plots; returns the files."""
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in report.figures():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1])
    return written


def look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Color and marker of a contender."""
    others = [other for other in names if other not in _LOOKS]
    if name in _LOOKS:
        return _LOOKS[name]
    return _MORE_LOOKS[others.index(name) % len(_MORE_LOOKS)]


def panels(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    title: str,
    about: str,
    note: str,
    share_x: bool | Literal["all", "row", "col"] = False,
    share_y: bool | Literal["all", "row", "col"] = False,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels of `size` inches below a title and a line about it, above a note."""
    width = max(size[0] * columns, 8.0)
    lines = [
        line for part in note.split("\n") for line in textwrap.wrap(part, int(width / _CHARACTER))
    ]
    footer = _FOOTER_LINE * len(lines) + 0.12
    height = size[1] * rows + _HEADER + footer
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine(
        "constrained",
        rect=(0.005, footer / height, 0.99, 1 - (_HEADER + footer) / height),
        h_pad=0.08,
        w_pad=0.08,
    )
    figure.text(0.12 / width, 1 - 0.1 / height, title, va="top", size=14, weight="bold")
    figure.text(0.12 / width, 1 - 0.42 / height, about, va="top", color=DARK)
    figure.text(0.12 / width, 0.08 / height, "\n".join(lines), va="bottom", size=8.5, color=GRAY)
    return figure, figure.subplots(
        rows, columns, squeeze=False, sharex=share_x, sharey=share_y
    ).tolist()


def legend(figure: Figure, entries: Sequence[tuple[str, Any]]) -> None:
    """In the header, below its lines."""
    height = figure.get_figheight()
    figure.legend(
        handles=[handle for _, handle in entries],
        labels=[label for label, _ in entries],
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - 0.62 / height),
        ncols=len(entries),
    )


def key(name: str, names: Sequence[str], *, marker: bool = True) -> tuple[str, Any]:
    """A contender's entry in a legend."""
    color, shape = look(name, names)
    line = Line2D([], [], color=color, marker=shape if marker else "s", markersize=6)
    if not marker:
        line.set(linestyle="none", markersize=9)
    return name, line


def middle(outcome: Outcome, name: str) -> tuple[float, float]:
    """Between which seconds the middle half of a contender's samples lies."""
    return timing.quartiles(outcome["contenders"][name]["samples"].values())


def rate(outcome: Outcome, name: str, unit: str) -> tuple[float, float, float]:
    """A rate (a key of the record) and between which values the middle half of it lies."""
    one = outcome["contenders"][name]
    work = one[unit] * one["seconds"]
    low, high = middle(outcome, name)
    return one[unit], work / high, work / low


def curve(
    axes: Axes,
    outcomes: Sequence[Outcome],
    name: str,
    names: Sequence[str],
    point: Callable[[Outcome], tuple[float, float] | None],
    spread: Callable[[Outcome], tuple[float, float]] | None = None,
) -> None:
    """A contender's points (where there are any), with bars for their spread."""
    color, marker = look(name, names)
    order = 3 if name == FLASH_ATTN2 else 2
    members = [(at, one) for one in outcomes if name in measured(one) and (at := point(one))]
    if not members:
        return
    points = sorted(at for at, _ in members)
    axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4.5, zorder=order)
    if spread:
        for (x, _), one in members:
            axes.vlines(x, *spread(one), color=color, linewidth=3, alpha=0.45, zorder=order)


def log_ticks(axis: Axis, base: int, label: Callable[[float], str]) -> None:
    """Labelled ticks at round numbers, as many of them as fit."""
    low, high = axis.get_view_interval()
    powers = range(math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1)
    choices: list[tuple[Sequence[int], int]] = [((1,), stride) for stride in range(1, 10)]
    if base == 10:
        choices = [((1, 2, 5), 1), ((1, 3), 1), *choices]
    for factors, stride in choices:
        ticks = [factor * float(base) ** power for power in powers[::stride] for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _TICKS:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_locator(NullLocator())


def time_label(seconds: float) -> str:
    return _scaled(seconds * 1e9, 1000, ("ns", "µs", "ms", "s"))


def memory_label(size: float) -> str:
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    """`value`, in the first of `units`, in the largest one that keeps it at 1 or above."""
    for unit in units[:-1]:
        if value < base * 0.999:
            return f"{value:.4g} {unit}"
        value /= base
    return f"{value:.4g} {units[-1]}"


def times_label(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x"


def short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else str(number)


def facets(
    outcomes: Sequence[Outcome], title: Callable[[Outcome], str]
) -> Mapping[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(title(outcome), []).append(outcome)
    return found


def only(values: Iterator[Any]) -> Any:
    """What all of `values` are; None if they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None

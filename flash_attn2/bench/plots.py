"""What the plots of all suites have in common: a frame that says it all, error bars, log ticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flash_attn2.bench import timing
from flash_attn2.bench.contenders import SDPA, STANDARD
from flash_attn2.bench.decode.contenders import SDPA_PACKED
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import hardware
from flash_attn2.bench.report import Report, measured
from flash_attn2.bench.suite import Outcome

_STYLE: Any = {
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
_LOOKS = {  # color and marker
    FLASH_ATTN2: ("#d1495b", "o"),
    SDPA: ("#30638e", "s"),
    SDPA_PACKED: ("#73a9cf", "D"),
    STANDARD: ("#9aa5b1", "^"),
}
_MORE_LOOKS = (("#edae49", "v"), ("#66a182", "P"), ("#8d6a9f", "X"), ("#4c3b4d", "*"))
# Of lines that show a spread: seen on bars of any color.
SPREAD: Any = {
    "color": "#333333",
    "linewidth": 1.3,
    "path_effects": [Stroke(linewidth=2.6, foreground="white"), Normal()],
    "zorder": 4,
}
_HEADER, _NOTE_LINE, _CHARACTER = 0.95, 0.17, 0.062  # inches
_TICKS = 8  # at most, on a logarithmic axis


def write(folder: Path, report: Report) -> list[Path]:
    """Writes a PNG for each of the report's plots; returns the files."""
    written = []
    with mpl.rc_context(_STYLE):
        for name, figure in report.figures():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1])
    return written


def look(report: Report, name: str) -> tuple[str, str]:
    """Color and marker of a contender."""
    others = [other for other in report.contenders if other not in _LOOKS]
    return _LOOKS.get(name) or _MORE_LOOKS[others.index(name) % len(_MORE_LOOKS)]


def panels(
    report: Report,
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    title: str,
    about: str,
    note: str,
    legend: Sequence[Patch | Line2D],
    **share: Any,
) -> tuple[Figure, list[list[Axes]]]:
    """Panels of `size` inches; above them title, shapes, machine and legend, below them a note."""
    width = max(size[0] * columns, 8.0)
    lines = [
        line for part in note.split("\n") for line in textwrap.wrap(part, int(width / _CHARACTER))
    ]
    below = _NOTE_LINE * len(lines) + 0.12
    height = size[1] * rows + _HEADER + below
    figure = Figure(figsize=(width, height))
    rect = (0.005, below / height, 0.99, 1 - (_HEADER + below) / height)
    figure.set_layout_engine("constrained", rect=rect, h_pad=0.08, w_pad=0.08)

    def put(inches: float, text: str, **style: Any) -> None:
        y, anchor = (1 - inches / height, "top") if inches > 0 else (-inches / height, "bottom")
        figure.text(0.12 / width, y, text, va=anchor, **style)

    machine = hardware(report.record)
    put(0.1, f"{report.title}: {title}", size=14, weight="bold")
    put(0.42, f"{about}   |   {machine}" if about else machine, color="#333333")
    put(-0.08, "\n".join(lines), size=8.5, color="#6b7280")
    figure.legend(
        handles=legend,
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - 0.62 / height),
        ncols=len(legend),
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **share).tolist()


def patches(report: Report, names: Iterable[str]) -> list[Patch | Line2D]:
    """A legend of bars."""
    return [Patch(color=look(report, name)[0], label=name) for name in names]


def lines(report: Report, outcomes: Sequence[Outcome]) -> list[Patch | Line2D]:
    """A legend of the curves that these outcomes make."""
    drawn = {name for outcome in outcomes for name in measured(outcome)}
    looks = {name: look(report, name) for name in report.contenders if name in drawn}
    return [Line2D([], [], color=c, marker=m, label=name) for name, (c, m) in looks.items()]


def spread(outcome: Outcome, name: str, what: str) -> tuple[float, float, float]:
    """What was measured of a contender, and between which values the middle half of it lies."""
    one = outcome["contenders"][name]
    value: float = one[what]
    low, high = timing.quartiles(one["samples"].values())
    if what != "seconds":  # a rate
        low, high = (value * one["seconds"] / seconds for seconds in (high, low))
    return value, low, high


def curve(
    axes: Axes, report: Report, name: str, points: Sequence[tuple[float, float, float, float]]
) -> None:
    """Of x, y, and between which values the middle half of y lies."""
    if not points:
        return
    color, marker = look(report, name)
    order = 3 if name == FLASH_ATTN2 else 2
    x, y, low, high = zip(*sorted(points), strict=True)
    axes.plot(x, y, color=color, marker=marker, markersize=4.5, zorder=order)
    axes.vlines(x, low, high, color=color, linewidth=3, alpha=0.45, zorder=order)


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

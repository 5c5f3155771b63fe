"""The counts as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flash_attn2.io.report import Row
from flash_attn2.io.schedules import SCHEDULES

_COLORS = ("#9aa5b1", "#edae49", "#d1495b", "#30638e")
_GB = 1e9
_Value = Callable[[Row], float]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Four panels over the length: memory moved and held, shared memory, balance."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    _panel(panels[0, 0], rows, "Global memory, fwd + bwd, as asked for (GB)", _asked, _perfect)
    _panel(panels[0, 1], rows, "Peak memory in training (GB)", _peak)
    _panel(panels[1, 0], rows, "Shared memory, fwd + bwd (GB)", _shared)
    _panel(panels[1, 1], rows, "Time of the last CTA over even work, forward", _balance)
    panels[0, 0].legend(frameon=False, title="dashed: perfect L2 cache")
    figure.savefig(path, dpi=150)


def _panel(
    axes: Axes, rows: Sequence[Row], title: str, value: _Value, dashed: _Value | None = None
) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.grid(color="#e6e6e6")
    for schedule, color in zip(SCHEDULES, _COLORS, strict=False):
        _line(axes, rows, schedule.name, value, color=color, marker="o", label=schedule.name)
        if dashed is not None:
            _line(axes, rows, schedule.name, dashed, color=color, linestyle="--")


def _line(axes: Axes, rows: Sequence[Row], name: str, value: _Value, **style: str) -> None:
    found = [(row.seqlen, value(row)) for row in rows if row.schedule == name]
    if found:
        axes.plot([x for x, _ in found], [y for _, y in found], **style)  # type: ignore[arg-type]


def _asked(row: Row) -> float:
    return (row.forward.memory + row.backward.memory).asked / _GB


def _perfect(row: Row) -> float:
    return (row.forward.memory + row.backward.memory).distinct / _GB


def _peak(row: Row) -> float:
    return row.peak_bytes / _GB


def _shared(row: Row) -> float:
    return (row.forward.shared_bytes + row.backward.shared_bytes) / _GB


def _balance(row: Row) -> float:
    return row.forward.main.balance

"""A plot of decoding: the speed at which keys and values are read, by what each sweep varies."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flash_attn2.bench import plots
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.report import DecodeReport
from flash_attn2.bench.record import hardware
from flash_attn2.bench.suite import Outcome

_RATE = "bytes_per_second"
_READING: dict[str, Any] = {"color": "#555555", "linestyle": ":"}


def figures(report: DecodeReport) -> Iterator[tuple[str, Figure]]:
    """A row of panels per dtype, a column per group of cases (and length)."""
    dtypes = list(dict.fromkeys(outcome["case"]["dtype"] for outcome in report.outcomes))
    columns = plots.facets(report.outcomes, _sweep)
    if not dtypes:
        return
    figure, grid = plots.panels(
        len(dtypes),
        len(columns),
        (3.4, 2.8),
        title="Decoding: keys and values read per second",
        about=_about(report),
        note=(
            "One query per sequence; bytes of keys and values that count, each once, from caches "
            "that are not in the processor's. Bars at the points: the middle half of the samples. "
            "Reading memory: a plain sum, in turn with the others. SDPA reads a contiguous cache "
            "everywhere."
        ),
        share_x="col",
        share_y="row",
    )
    for line, dtype in zip(grid, dtypes, strict=True):
        for axes, (title, outcomes) in zip(line, columns.items(), strict=True):
            _plot(axes, report, [one for one in outcomes if one["case"]["dtype"] == dtype])
            axes.set(title=f"{dtype}\n{title}", xlabel=report.groups[outcomes[0]["case"]["group"]])
        line[0].set_ylabel("GB/s  (higher is better →)")
        line[0].set_ylim(bottom=0)
    reading = ("reading memory", Line2D([], [], **_READING))
    plots.legend(
        figure, [*(plots.key(name, report.contenders) for name in report.contenders), reading]
    )
    yield "decode", figure


def _sweep(outcome: Outcome) -> str:
    """What a panel's cases have in common."""
    case = DecodeCase.of(outcome)
    parts = []
    if case.group != "batch":
        parts.append(f"batch {case.batch}")
    if case.group != "kv_length":
        parts.append(f"{case.seqlen_k} keys")
    if case.group != "page_size":
        parts.append("contiguous")
    return ", ".join(parts)


def _about(report: DecodeReport) -> str:
    cases = [DecodeCase.of(outcome) for outcome in report.outcomes]
    base = [case for case in cases if case.group != "group"] or cases
    heads = f"{base[0].num_heads}/{base[0].num_heads_kv} heads of {base[0].head_dim}"
    return f"{heads} where not said otherwise   |   {hardware(report.record)}"


def _plot(axes: Axes, report: DecodeReport, outcomes: Sequence[Outcome]) -> None:
    varied = [DecodeCase.of(outcome).varied for outcome in outcomes]
    places = {value: place for place, value in enumerate(varied)}

    for name in report.contenders:
        plots.curve(
            axes,
            outcomes,
            name,
            report.contenders,
            functools.partial(_point, name=name, places=places),
            functools.partial(_spread, name=name),
        )
    memory = [outcome["read"][_RATE] / 1e9 for outcome in outcomes]
    axes.plot(range(len(outcomes)), memory, **_READING)
    labels = ["none" if not value else plots.short(value) for value in varied]
    axes.set_xticks(range(len(outcomes)), labels)


def _point(outcome: Outcome, name: str, places: Mapping[int, int]) -> tuple[float, float]:
    return places[DecodeCase.of(outcome).varied], outcome["contenders"][name][_RATE] / 1e9


def _spread(outcome: Outcome, name: str) -> tuple[float, float]:
    _, low, high = plots.rate(outcome, name, _RATE)
    return low / 1e9, high / 1e9

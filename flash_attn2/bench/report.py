"""The results as a table for people, and as lines of a record."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flash_attn2.bench import timing
from flash_attn2.bench.contenders import CONTENDERS, FLASH_ATTN2, SDPA, STANDARD
from flash_attn2.bench.modes import Mode
from flash_attn2.bench.record import case_record
from flash_attn2.bench.runner import Result

GROUPS = {"head_dim": "Head dimensions", "seqlen": "Sequence lengths", "model": "Models"}

_NOISY = 1.5


class Measured(Protocol):
    @property
    def samples(self) -> timing.Samples: ...


def print_tables(console: Console, results: Sequence[Result], mode: Mode) -> None:
    """One table per group of cases, and a summary."""
    for group, title in GROUPS.items():
        members = [result for result in results if result.case.group == group]
        if members:
            full_title = f"{mode.title}: {title.lower()}"
            console.print(_table(full_title, members, throughput_unit(results)))
            console.print()
    _print_summary(console, results, mode)


def _table(title: str, results: Sequence[Result], unit: tuple[str, float]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.HORIZONTALS,
    )
    table.add_column("batch x rows x heads x head dim", min_width=34, overflow="fold")
    table.add_column("contender", no_wrap=True)
    for header in ("time", unit[0], "speed-up", "extra memory", "max error"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        for name in CONTENDERS:
            table.add_row(*_row(result, name, unit[1]), end_section=name == STANDARD)
    return table


def _row(result: Result, name: str, flops: float) -> list[str | Text]:
    # The first column holds the name of the case, then its shape.
    case = result.case
    shape, options = case.description
    titles: dict[str, str | Text] = {
        FLASH_ATTN2: Text(case.name, style="bold"),
        SDPA: f"  {shape}",
        STANDARD: f"  {options}",
    }
    title = titles[name]
    if name in result.unavailable:
        return [title, name, Text(result.unavailable[name], style="dim")]
    one = result.measurements[name]
    error = Text("n/a" if one.error is None else f"{one.error:.1e}")
    if name == FLASH_ATTN2 and not result.errors.within_tolerance(name):
        error.stylize("bold red")
    return [
        title,
        _describe(name, one.variant),
        format_time(one.seconds),
        format_number(one.flops_per_second / flops),
        format_ratio(result.ratios.get(name)),
        "n/a" if one.extra_bytes is None else format_bytes(one.extra_bytes),
        error,
    ]


def _describe(name: str, variant: str) -> Text:
    style = "bold" if name == FLASH_ATTN2 else ""
    return Text.assemble((name, style), (f" {variant}" if variant else "", "dim"))


def format_ratio(ratio: timing.Ratio | None) -> Text:
    """With its spread; green where flash_attn2 is as fast or faster. Empty for None."""
    if ratio is None:
        return Text("")
    style = "green" if ratio.value >= 1 else "bold red"
    spread = Text(f" {ratio.low:.2f}-{ratio.high:.2f}", style="dim")
    return Text.assemble((f"{ratio.value:.2f}x", style), spread)


def _print_summary(console: Console, results: Sequence[Result], mode: Mode) -> None:
    for name in (SDPA, STANDARD):
        ratios = {r.case.name: r.ratios[name].value for r in results if name in r.ratios}
        if not ratios:
            continue
        mean = statistics.geometric_mean(ratios.values())
        worst = min(ratios, key=lambda case: ratios[case])
        slower = [case for case, ratio in ratios.items() if ratio < 1]
        console.print(
            f"flash_attn2 is [bold]{mean:.2f}x[/] as fast as {name} (geometric mean of "
            f"{len(ratios)} cases; lowest {ratios[worst]:.2f}x in {worst})."
        )
        if slower:
            console.print(f"[red]Slower than {name} in:[/] {', '.join(slower)}")
    if noise := describe_noise([result.measurements for result in results]):
        console.print(noise)
    sampled = sum(result.errors.checked < 1 for result in results)
    sample = f", on a sample of the heads and rows in {sampled} cases" if sampled else ""
    passes = ", of both passes" if mode.gradients else ""
    what = " of the gradients" if mode.gradients else ""
    console.print(
        "[dim]loop: sequence by sequence. padded: to the longest sequence, with a mask. mask: the "
        "window as a matrix of booleans. speed-up: their time over flash_attn2's (medians), with "
        f"the middle half of the rounds. extra memory: peak beyond the inputs{passes}. max error"
        f"{what}: against float64{sample}.[/]"
    )


def describe_noise(results: Sequence[Mapping[str, Measured]]) -> str:
    """A warning where times vary a lot; empty where they do not."""
    noisy = sum(
        any(timing.spread(one.samples) > _NOISY for one in measurements.values())
        for measurements in results
    )
    if not noisy:
        return ""
    return (
        f"[yellow]Noise:[/] in {noisy} of {len(results)} cases the times of a contender vary by "
        f"more than {_NOISY}x between quartiles. Is the machine busy?"
    )


def out_of_tolerance(results: Sequence[Result]) -> list[str]:
    """Cases in which flash_attn2's error breaks the project's tolerance rule."""
    return [r.case.name for r in results if not r.errors.within_tolerance(FLASH_ATTN2)]


def throughput_unit(results: Sequence[Result]) -> tuple[str, float]:
    """The unit to show throughput in, and how many operations per second it is."""
    fastest = max(one.flops_per_second for r in results for one in r.measurements.values())
    return ("TFLOP/s", 1e12) if fastest >= 1e13 else ("GFLOP/s", 1e9)


def format_number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def format_time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def format_bytes(size: float) -> str:
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}" if size < 100 else f"{size:.0f} {unit}"
    return f"{size / 1024:.2f} GiB"


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything that was measured, with every sample by its round."""
    return [case_record(result, flops=result.flops) for result in results]

"""The results as a table for people, and as lines of a record."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flash_attn2.bench.contenders import FLASH_ATTN2, SDPA
from flash_attn2.bench.decode.cases import GROUPS
from flash_attn2.bench.decode.contenders import CONTENDERS, SDPA_PACKED
from flash_attn2.bench.decode.runner import Result
from flash_attn2.bench.record import case_record, rounded
from flash_attn2.bench.report import describe_noise, format_number, format_ratio, format_time


def print_tables(console: Console, results: Sequence[Result]) -> None:
    """One table per group of cases, and a summary."""
    for group, title in GROUPS.items():
        members = [result for result in results if result.case.group == group]
        if members:
            console.print(_table(f"Decoding: {title}", members))
            console.print()
    _print_summary(console, results)


def _table(title: str, results: Sequence[Result]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.HORIZONTALS,
    )
    table.add_column("batch x keys x heads x head dim", min_width=34, overflow="fold")
    table.add_column("contender", no_wrap=True)
    for header in ("time", "GB/s", "of memory", "speed-up", "max error"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        for name in CONTENDERS:
            table.add_row(*_row(result, name), end_section=name == SDPA_PACKED)
    return table


def _row(result: Result, name: str) -> list[str | Text]:
    # The first column holds the name of the case, then its shape.
    shape, pages = result.case.description
    titles: dict[str, str | Text] = {
        FLASH_ATTN2: Text(result.case.name, style="bold"),
        SDPA: f"  {shape}",
        SDPA_PACKED: f"  {pages}",
    }
    contender = Text(name, style="bold" if name == FLASH_ATTN2 else "")
    if name in result.unavailable:
        return [titles[name], contender, Text(result.unavailable[name], style="dim")]
    one = result.measurements[name]
    error = Text(f"{one.error:.1e}")
    if name == FLASH_ATTN2 and not result.errors.within_tolerance(name):
        error.stylize("bold red")
    return [
        titles[name],
        contender,
        format_time(one.seconds),
        format_number(one.bytes_per_second / 1e9),
        f"{result.share(name):.0%}",
        format_ratio(result.ratios.get(name)),
        error,
    ]


def _print_summary(console: Console, results: Sequence[Result]) -> None:
    for name in (SDPA, SDPA_PACKED):
        ratios = {r.case.name: r.ratios[name].value for r in results if name in r.ratios}
        if ratios:
            worst = min(ratios, key=lambda case: ratios[case])
            mean = statistics.geometric_mean(ratios.values())
            console.print(
                f"flash_attn2 is [bold]{mean:.2f}x[/] as fast as {name} (geometric mean of "
                f"{len(ratios)} cases; lowest {ratios[worst]:.2f}x in {worst})."
            )
    bandwidth = statistics.median(result.read_bytes_per_second for result in results)
    shares = [result.share(FLASH_ATTN2) for result in results]
    console.print(
        f"It reads keys and values at {min(shares):.0%} to {max(shares):.0%} of the speed at which "
        f"memory can be read here, {bandwidth / 1e9:.0f} GB/s."
    )
    if noise := describe_noise([result.measurements for result in results]):
        console.print(noise)
    console.print(
        "[dim]One query per sequence; every call reads another layer's cache, so none of it is in "
        "the processor's. SDPA: enable_gqa. SDPA packed: the heads of a group as queries of one "
        "head. Both read a contiguous cache even where flash_attn2 has pages. GB/s: keys and "
        "values that count. of memory: of the speed of a plain sum, measured in turn with the "
        "others. speed-up: their time over flash_attn2's (medians), with the middle half of the "
        "rounds. max error: against float64, on a sample of sequences and heads.[/]"
    )


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything that was measured, with every sample by its round."""
    return [_record(result) for result in results]


def _record(result: Result) -> dict[str, Any]:
    read = {
        "bytes_per_second": result.read_bytes_per_second,
        "samples": rounded(result.read),
    }
    record = case_record(result, kv_bytes=result.case.kv_bytes, read=read)
    for name in result.measurements:
        record["contenders"][name]["share_of_memory"] = result.share(name)
    return record

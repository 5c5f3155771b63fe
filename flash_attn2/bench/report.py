"""Records as tables, for a console or as Markdown, and a summary."""

from __future__ import annotations

import functools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from flash_attn2.bench import timing
from flash_attn2.bench.accuracy import Errors
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_NOISY = 1.5  # upper quartile over lower quartile


class Table(NamedTuple):
    """Cells are in rich's markup. A block is rows that belong together."""

    title: str
    header: Sequence[str]
    blocks: Sequence[Sequence[Sequence[str]]]
    texts: int = 1  # leading columns that are text, not numbers


def print_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.HORIZONTALS,
    )
    for index, header in enumerate(table.header):
        if index == 0:
            shown.add_column(header, min_width=34, overflow="fold")
        else:
            justify: Any = "left" if index < table.texts else "right"
            shown.add_column(header, justify=justify, no_wrap=True)
    for block in table.blocks:
        for row in block:
            shown.add_row(*row, end_section=row is block[-1])
    console.print(shown)
    console.print()


def markdown(table: Table) -> str:
    from rich.text import Text

    aligned = ["---" if index < table.texts else "---:" for index in range(len(table.header))]
    rows = [list(row) for block in table.blocks for row in block]
    plain = [[Text.from_markup(cell).plain.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table.header, aligned, *plain])


class Report(ABC):
    """How a suite shows a record: what all suites of cases and contenders have in common."""

    groups: Mapping[str, str]  # of cases, with their titles
    shape: str  # what `describe` gives first, as a header

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.failed = [one for one in record["results"] if "failed" in one]
        self.outcomes = [one for one in record["results"] if "failed" not in one]
        complete = sorted(self.outcomes, key=lambda one: len(measured(one)), reverse=True)
        names = dict.fromkeys(name for one in complete for name in one["contenders"])
        self.contenders = list(names)
        self.peers = [name for name in names if name != FLASH_ATTN2]

    @property
    @abstractmethod
    def title(self) -> str:
        """What was measured."""

    @abstractmethod
    def describe(self, outcome: Outcome) -> tuple[str, str]:
        """Shape and options of its case."""

    @abstractmethod
    def notes(self) -> Iterator[str]:
        """Last lines of the summary: what is special, and what the columns mean."""

    @abstractmethod
    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Plots, by the names of their files. `plots.write` builds them, in its style."""

    def group(self, name: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome["case"]["group"] == name]

    def tables(self) -> Iterator[Table]:
        """One for each group of cases, a row for each contender."""
        contenders = [one["contenders"][name] for one in self.outcomes for name in measured(one)]
        columns = [column for column in _COLUMNS if any(column.key in one for one in contenders)]
        header = [self.shape, "contender", *(column.header for column in columns)]
        for group, title in self.groups.items():
            if members := self.group(group):
                blocks = [self._block(outcome, columns) for outcome in members]
                yield Table(f"{self.title}: {title}", header, blocks, texts=2)

    def _block(self, outcome: Outcome, columns: Sequence[_Column]) -> list[list[str]]:
        shape, options = self.describe(outcome)
        labels = [f"[bold]{outcome['case']['name']}[/]", f"  {shape}", f"  {options}"]
        rows = (_row(outcome, name, columns) for name in self.contenders)
        return [
            [label or "", *(row or [""] * (len(columns) + 1))]
            for label, row in zip_longest(labels, rows)
        ]

    def summary(self) -> Iterator[str]:
        for peer in self.peers:
            yield from _against(self.outcomes, peer)
        if noise := _noise(self.outcomes):
            yield noise
        yield from self.notes()
        for one in self.failed:
            from rich.markup import escape

            yield f"[bold red]Failed:[/] {one['case']['name']}: {escape(one['failed'])}"
        if wrong := self.out_of_tolerance():
            yield f"[bold red]Error out of tolerance in:[/] {', '.join(wrong)}"

    def out_of_tolerance(self) -> list[str]:
        """Cases in which flash_attn2's error breaks the project's tolerance rule."""
        return [one["case"]["name"] for one in self.outcomes if not _tolerable(one)]


def measured(outcome: Outcome) -> list[str]:
    """The contenders that ran."""
    return [name for name, one in outcome["contenders"].items() if "samples" in one]


def progress(outcome: Outcome) -> str:
    """The outcome of a case in a few words."""
    if "failed" in outcome:
        return f"FAILED: {outcome['failed']}"
    contenders = outcome["contenders"]
    ratios = [
        f"{one['ratio']['value']:.2f}x {name}" for name, one in contenders.items() if "ratio" in one
    ]
    return ", ".join([format_time(contenders[FLASH_ATTN2]["seconds"]), *ratios])


def _row(outcome: Outcome, name: str, columns: Sequence[_Column]) -> list[str]:
    from rich.markup import escape

    one = outcome["contenders"].get(name, {})
    if "samples" not in one:
        return [name, f"[dim]{escape(one.get('unavailable', ''))}[/]", *[""] * (len(columns) - 1)]
    title = f"[bold]{name}[/]" if name == FLASH_ATTN2 else name
    if one.get("variant"):
        title += f" [dim]{one['variant']}[/]"
    cells = {column.key: column.show(one.get(column.key)) for column in columns}
    if name == FLASH_ATTN2 and not _tolerable(outcome):
        cells["error"] = f"[bold red]{cells['error']}[/]"
    return [title, *cells.values()]


def _tolerable(outcome: Outcome) -> bool:
    return Errors.of(outcome).within_tolerance(FLASH_ATTN2)


def _against(outcomes: Sequence[Outcome], peer: str) -> Iterator[str]:
    ratios = {
        one["case"]["name"]: one["contenders"][peer]["ratio"]["value"]
        for one in outcomes
        if peer in measured(one)
    }
    if not ratios:
        return
    mean = statistics.geometric_mean(ratios.values())
    worst = min(ratios, key=lambda case: ratios[case])
    yield (
        f"flash_attn2 is [bold]{mean:.2f}x[/] as fast as {peer} (geometric mean of "
        f"{len(ratios)} cases; lowest {ratios[worst]:.2f}x in {worst})."
    )
    if slower := [case for case, ratio in ratios.items() if ratio < 1]:
        yield f"[red]Slower than {peer} in:[/] {', '.join(slower)}"


def _noise(outcomes: Sequence[Outcome]) -> str:
    """A warning where times vary a lot; empty where they do not."""
    noisy = sum(
        any(_spread(outcome["contenders"][name]["samples"]) > _NOISY for name in measured(outcome))
        for outcome in outcomes
    )
    if not noisy:
        return ""
    return (
        f"[yellow]Noise:[/] in {noisy} of {len(outcomes)} cases the times of a contender vary by "
        f"more than {_NOISY}x between quartiles. Is the machine busy?"
    )


def _spread(samples: Mapping[Any, float]) -> float:
    low, high = timing.quartiles(samples.values())
    return high / low


def format_time(seconds: float) -> str:
    return _scaled(seconds * 1e9, 1000, ("ns", "µs", "ms", "s"))


def format_bytes(size: float) -> str:
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB"))


def format_rate(rate: float, unit: str) -> str:
    """In `unit`, "FLOP/s" or "B/s"."""
    return _scaled(rate, 1000, [prefix + unit for prefix in ("", "k", "M", "G", "T", "P")])


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    """`value`, in the first of `units`, in the largest one that keeps it at 1 or above."""
    if value == 0:
        return "0"
    unit = 0
    while value >= base * 0.9995 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:.0f} {units[unit]}" if value >= 1000 else f"{value:.3g} {units[unit]}"


def _format_ratio(ratio: Mapping[str, float] | None) -> str:
    """With its spread; green where flash_attn2 is as fast or faster. Empty for flash_attn2."""
    if ratio is None:
        return ""
    style = "green" if ratio["value"] >= 1 else "bold red"
    spread = f"[dim]{ratio['low']:.2f}-{ratio['high']:.2f}[/]"
    return f"[{style}]{ratio['value']:.2f}x[/] {spread}"


def _format_share(share: float | None) -> str:
    """Empty for all but flash_attn2."""
    return "" if share is None else f"{share:.0%}"


def _known(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "n/a" if value is None else show(value)


class _Column(NamedTuple):
    """Shown where something has such a key."""

    header: str
    key: str
    show: Callable[[Any], str]


_COLUMNS = (
    _Column("time", "seconds", format_time),
    _Column("throughput", "flops_per_second", functools.partial(format_rate, unit="FLOP/s")),
    _Column("throughput", "bytes_per_second", functools.partial(format_rate, unit="B/s")),
    _Column("of memory", "share_of_memory", "{:.0%}".format),
    _Column("of dense", "share_of_dense", _format_share),
    _Column("speed-up", "ratio", _format_ratio),
    _Column("extra memory", "extra_bytes", _known(format_bytes)),
    _Column("max error", "error", _known("{:.1e}".format)),
)

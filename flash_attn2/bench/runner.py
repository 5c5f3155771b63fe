"""Goes through the cases of a suite, keeps every result at once, and says how far it is."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

from flash_attn2.bench import isolate
from flash_attn2.bench.record import Record
from flash_attn2.bench.suite import Case, Outcome, Suite


class Stopped(KeyboardInterrupt):
    """The process was told to end."""


def measure(suite: Suite[Case], cases: Sequence[Case]) -> Iterator[Outcome]:
    """The outcome of each case, as it comes."""
    for section, members in groupby(cases, key=suite.section):
        if section is None:
            yield from (isolate.measure(suite, case) for case in members)
        else:
            yield from isolate.outcomes(suite, list(members), section)


def collect(
    outcomes: Iterable[Outcome],
    names: Sequence[str],
    record: Record,
    summary: Callable[[Outcome], str],
) -> tuple[list[Outcome], int]:
    """All outcomes, each written to `record` when it comes; one comes for each of `names`.

    An interrupt or SIGTERM ends that early; the second value is the exit status for it, or 0.
    `summary` is what the progress says of an outcome.
    """
    done: list[Outcome] = []
    status = 0
    with _progress(names) as progress, _ending_on_sigterm():
        try:
            for outcome in outcomes:
                done.append(outcome)
                record.write(done, complete=len(done) == len(names))
                progress.advance(names[len(done) - 1], summary(outcome))
        except KeyboardInterrupt as reason:
            status = 128 + (signal.SIGTERM if isinstance(reason, Stopped) else signal.SIGINT)
    if status and done:  # it may have ended in the middle of a file
        record.write(done, complete=len(done) == len(names))
    return done, status


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress(Protocol):
    def advance(self, name: str, summary: str) -> None:
        """The next case is done."""


@contextlib.contextmanager
def _progress(names: Sequence[str]) -> Iterator[_Progress]:
    """On stderr: a bar on a terminal, else a line for each case."""
    if sys.stderr.isatty():
        with _bar(names) as bar:
            yield bar
    else:
        yield _Lines(len(names))


class _Lines:
    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def advance(self, name: str, summary: str) -> None:
        self._done += 1
        elapsed = time.monotonic() - self._start
        progress = f"[{self._done}/{self._total}, {elapsed:.0f} s]"
        print(f"{progress} {name}: {summary}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bar(names: Sequence[str]) -> Iterator[_Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(names[0], total=len(names))
    following = iter([*names[1:], ""])

    class Bar:
        def advance(self, name: str, summary: str) -> None:
            bar.console.print(Text.assemble((name, "bold"), f": {summary}"))
            bar.update(task, advance=1, description=next(following))

    with bar:
        yield Bar()

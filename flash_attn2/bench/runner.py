"""Goes through the cases of a suite, keeps every result at once, and says how far it is."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import groupby
from typing import Any

from flash_attn2.bench import isolate
from flash_attn2.bench.record import Record
from flash_attn2.bench.suite import Outcome, Suite


class Stopped(KeyboardInterrupt):
    """The process was told to end."""


def run(
    suite: Suite[Any], record: Record, summary: Callable[[Outcome], str]
) -> tuple[list[Outcome], int]:
    """Measures all cases; see `collect`."""
    return collect(measure(suite), [case.name for case in suite.cases], record, summary)


def measure(suite: Suite[Any]) -> Generator[Outcome, None, None]:
    """The outcome of each case, as it comes."""
    for section, members in groupby(suite.cases, key=suite.section):
        if section is None:
            yield from (isolate.measure(suite, case) for case in members)
        else:
            yield from isolate.outcomes(suite, list(members), section)


def collect(
    outcomes: Generator[Outcome, None, None],
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
    start = time.monotonic()
    with _ending_on_sigterm(), contextlib.closing(outcomes):
        try:
            for number, name in enumerate(names, 1):
                _say(f"[{number}/{len(names)}, {time.monotonic() - start:.0f} s] {name}: ", end="")
                done.append(next(outcomes))
                record.write(done, complete=len(done) == len(names))
                _say(summary(done[-1]))
        except KeyboardInterrupt as reason:
            _say("interrupted")
            status = 128 + (signal.SIGTERM if isinstance(reason, Stopped) else signal.SIGINT)
    if status and done:  # it may have ended in the middle of a file
        record.write(done, complete=len(done) == len(names))
    return done, status


def _say(text: str, end: str = "\n") -> None:
    """Progress, on a terminal as in a file."""
    print(text, end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

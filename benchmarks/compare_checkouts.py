"""Measures one checkout of flash_attn2 against another, on the rows of the CPU table.

    python benchmarks/compare_checkouts.py BEFORE AFTER [--output FILE] [--rows REGEX] [--seconds S]

BEFORE and AFTER are directories with a built flash_attn2 in them (`make build` there). Each is
imported by a process of its own; the two take turns on every row, with one thread and with as many
as torch takes. Prints how many times as fast AFTER is, by ratios of medians, and their geometric
mean; rows below 0.97 are measured twice more, and the median of the three counts. Writes every
sample as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from own_runs import ENVIRONMENT, AnyRow, rows
from peer_rows import SHORT_WAITS

from flash_attn2 import bench
from flash_attn2.bench import race, runner, timing
from flash_attn2.bench.record import Record
from flash_attn2.bench.suite import Outcome

_WORKER = Path(__file__).with_name("checkout_worker.py")
_BUDGET = {"min_rounds": 5, "max_rounds": 50}
_SLOWER = 0.97  # below which a row is measured again
_REPEATS = 2
_PAUSE = 2e-3  # seconds, in which the threads of the other process fall asleep


class _Worker:
    """A process that imports one checkout and times what it is told."""

    def __init__(self, checkout: Path, environment: Mapping[str, str]) -> None:
        self._checkout = checkout
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(Path(bench.__file__).parent)],
            env={**os.environ, **SHORT_WAITS, **environment}
            | {"PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        package = Path(self.ask("package"))
        if checkout.resolve() not in package.parents:
            self.close()
            raise SystemExit(f"{checkout} has no flash_attn2: {package} was imported")

    def ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {self._checkout} died")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()


class _Clock(timing.CpuClock):
    """Asks the worker that a run names."""

    def measure(self, run: Any, calls: int) -> float:
        worker, threads = run
        time.sleep(_PAUSE)
        seconds: float = worker.ask("measure", threads, calls)
        return seconds


@contextlib.contextmanager
def _workers(checkouts: Sequence[Path], section: str) -> Iterator[list[_Worker]]:
    workers = [_Worker(checkout, ENVIRONMENT.get(section, {})) for checkout in checkouts]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _compare(workers: Sequence[_Worker], threads: int, seconds: float) -> Outcome:
    clock = _Clock()
    entries = {
        name: race.enter((worker, threads), clock)
        for name, worker in zip(("before", "after"), workers, strict=True)
    }
    samples = race.run(entries, clock, timing.Budget(seconds, **_BUDGET))
    return {
        "times_as_fast": timing.compare(samples["after"], samples["before"]).value,
        "samples": {name: race.rounded(each) for name, each in samples.items()},
    }


def _measure(row: AnyRow, args: argparse.Namespace) -> Iterator[Outcome]:
    with _workers((args.before, args.after), row.section) as workers:
        for worker in workers:
            worker.ask("row", row.name)
        for threads in row.threads:
            tries = [_compare(workers, threads, args.seconds)]
            if tries[0]["times_as_fast"] < _SLOWER:
                tries += [_compare(workers, threads, args.seconds) for _ in range(_REPEATS)]
            ratio = statistics.median(one["times_as_fast"] for one in tries)
            yield {"row": row.name, "threads": threads, "times_as_fast": ratio, "tries": tries}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--output", type=Path, default=Path("bench-results/checkouts.json"))
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows with such a name")
    parser.add_argument("--seconds", type=float, default=2.0, help="per row and threads")
    args = parser.parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    selected = [row for row in rows() if re.search(args.rows, row.name)]
    if not selected:
        parser.error(f"--rows {args.rows!r} matches no row")

    names = [f"{row.name}, {threads} threads" for row in selected for threads in row.threads]
    record = Record(args.output, "cpu", {"rows": args.rows, "seconds": args.seconds})
    outcomes = (outcome for row in selected for outcome in _measure(row, args))
    done, status = runner.collect(outcomes, names, record, _one_line)
    for outcome in done:
        print(f"{_one_line(outcome)}  {outcome['row']}, {outcome['threads']} threads")
    if ratios := [outcome["times_as_fast"] for outcome in done]:
        mean = statistics.geometric_mean(ratios)
        print(f"{mean:.3f}  geometric mean of {len(ratios)}; lowest {min(ratios):.3f}")
    return status


def _one_line(outcome: Outcome) -> str:
    return f"{outcome['times_as_fast']:.3f}"


if __name__ == "__main__":
    sys.exit(main())

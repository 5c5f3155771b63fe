"""Measures one checkout of flash_attn2 against another, on the rows of the CPU table.

    python benchmarks/compare_checkouts.py BEFORE AFTER [--output FILE] [--rows REGEX] [--seconds S]

BEFORE and AFTER are directories with a built flash_attn2 in them (`make build` there). Each is
imported by a process of its own; the two take turns on every row, with one thread and with two.
Prints how many times as fast AFTER is, by ratios of medians, and their geometric mean; rows below
0.97 are measured twice more, and the median of the three counts. Writes every sample as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpu_rows import ENVIRONMENT, Row, rows

from flash_attn2.bench import timing
from flash_attn2.bench.contenders import FLASH_ATTN2, Problem
from flash_attn2.bench.record import rounded, write_record

_BUDGET = {"min_rounds": 5, "max_rounds": 50}
_SLOWER = 0.97  # below which a row is measured again
_REPEATS = 2


class _Worker:
    """A process that imports one checkout and times what it is told."""

    def __init__(self, checkout: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=os.environ | environment | {"PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class _Clock(timing.CpuClock):
    """Asks the worker that a run names."""

    def measure(self, run: Any, calls: int) -> float:
        worker, threads = run
        seconds: float = worker.ask("measure", threads, calls)
        return seconds


def _serve() -> None:
    """What a worker does: answers questions, a line each."""
    import torch
    from cpu_peers import build

    clock = timing.CpuClock()
    run: Any = None
    mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    for line in sys.stdin:
        kind, *values = json.loads(line)
        answer: Any = None
        if kind == "row":
            row = _timed_rows()[values[0]]
            problem = Problem.create(row.case, "cpu", gradients=row.mode.gradients)
            run = build(FLASH_ATTN2, row, problem).run
            mode = contextlib.nullcontext() if row.mode.gradients else torch.inference_mode()
        else:
            threads, calls = values
            torch.set_num_threads(threads)
            with mode:
                answer = clock.measure(run, calls)
        print(json.dumps(answer), flush=True)


def _timed_rows() -> list[Row]:
    return [row for row in rows() if isinstance(row, Row) and row.section != "peak"]


@contextlib.contextmanager
def _workers(checkouts: Sequence[Path], section: str) -> Iterator[list[_Worker]]:
    workers = [_Worker(checkout, ENVIRONMENT.get(section, {})) for checkout in checkouts]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _compare(workers: list[_Worker], threads: int, seconds: float) -> dict[str, Any]:
    runs = {name: (w, threads) for name, w in zip(("before", "after"), workers, strict=True)}
    clock = _Clock()
    estimates = {name: timing.estimate(run, clock) for name, run in runs.items()}  # type: ignore[arg-type]
    budget = timing.Budget(seconds, **_BUDGET)
    samples = timing.interleave(runs, estimates, clock, budget)  # type: ignore[arg-type]
    return {
        "times_as_fast": timing.compare(samples["after"], samples["before"]).value,
        "samples": {name: rounded(each) for name, each in samples.items()},
    }


def _measure(index: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    row = _timed_rows()[index]
    with _workers((args.before, args.after), row.section) as workers:
        for worker in workers:
            worker.ask("row", index)
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
    selected = [i for i, row in enumerate(_timed_rows()) if re.search(args.rows, row.name)]
    if not selected:
        parser.error(f"--rows {args.rows!r} matches no row")

    outcomes: list[dict[str, Any]] = []
    for index in selected:
        for outcome in _measure(index, args):
            outcomes.append(outcome)
            print(f"{outcome['times_as_fast']:.3f}  {outcome['row']}, {outcome['threads']} threads")
            options = {"rows": args.rows, "seconds": args.seconds}
            write_record(args.output, "checkouts", options, index == selected[-1], outcomes)
    ratios = [outcome["times_as_fast"] for outcome in outcomes]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"{mean:.3f}  geometric mean of {len(ratios)}; lowest {min(ratios):.3f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        _serve()
    else:
        sys.exit(main())

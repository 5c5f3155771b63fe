"""`python -m fuzz --problems N --seed S`, from tests/; `make fuzz` calls it."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from . import problem as problems
from .shrink import smallest
from .worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--problems", type=int, default=300, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the series")
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--backend", default="cpu", choices=sorted(problems.LIMITS))
    parser.add_argument("--failures", type=int, default=5, help="after so many it stops")
    parser.add_argument(
        "--no-hostile", action="store_true", help="lengths, tables and positions as they should be"
    )
    parser.add_argument("--no-shrink", action="store_true", help="leave failing problems as found")
    options = parser.parse_args()
    print(f"{options.problems} problems, seed {options.seed}, {options.backend}", flush=True)
    failures, begin = 0, time.monotonic()
    with Worker(options.backend) as worker:
        for number in range(options.first, options.first + options.problems):
            problem = problems.drawn(options.seed, number, options.backend)
            if options.no_hostile:
                problem = replace(problem, hostile=0)
            if message := worker.failure(problem):
                failures += 1
                print(
                    f"\nproblem {number} of seed {options.seed}: {message}\n{problem!r}", flush=True
                )
                if not options.no_shrink:
                    print(smallest(worker, problem, message), flush=True)
                if failures == options.failures:
                    break
            if number % 1000 == 999:
                seconds = time.monotonic() - begin
                print(f"{number + 1} done, {failures} failures, {seconds:.0f} s", flush=True)
    print(f"{failures} failures in {time.monotonic() - begin:.0f} s")
    sys.exit(failures != 0)


main()

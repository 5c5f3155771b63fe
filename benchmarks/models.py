"""Measures whole models with flash_attn2's attention beside SDPA's, in turns.

    python benchmarks/models.py [--output FILE] [--cases REGEX] [--seconds S] [--quick]
    python benchmarks/models.py --show FILE

The GPT of examples/ in training and generating, and its BERT in training on sequences of very
different lengths: tokens per second, and ratios of medians, in float32 and bf16, with as many
threads as torch takes. Before they are timed, both have to give the same losses or logits. About
three minutes on a quiet machine with two cores. `compare_checkouts.py --rows ^model` compares two
checkouts on the same models. It needs `pip install "flash_attn2[bench]"`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import recorded
import torch
from model_cases import prepare
from model_rows import FULL, SMALL, ModelRow, rows

from flash_attn2.bench import race, timing
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import hardware, processor_of, read_record
from flash_attn2.bench.report import Table, markdown
from flash_attn2.bench.suite import Outcome, Suite
from flash_attn2.bench.timing import Budget

_ROUNDS = (9, 60)  # at least and at most
_QUICK_ROUNDS = (2, 3)


class Models(Suite[ModelRow]):
    def __init__(self, cases: Sequence[ModelRow], budget: Budget) -> None:
        self.cases = cases
        self._budget = budget

    def section(self, case: ModelRow) -> str:
        return case.section

    def describe(self, case: ModelRow) -> Outcome:
        return {"case": {"name": case.name, **dataclasses.asdict(case)}}

    def measure(self, case: ModelRow) -> Outcome:
        torch.set_num_threads(*case.threads)
        clock = timing.CpuClock()
        work = {name: prepare(case, name) for name in (FLASH_ATTN2, SDPA)}
        outcomes = [one.outcome() for one in work.values()]
        difference = float((outcomes[0] - outcomes[1]).abs().max())
        allowed = work[SDPA].tolerance[case.dtype]
        if not difference <= allowed:
            raise RuntimeError(f"results differ by {difference:.2g}, {allowed:g} are allowed")
        entries = {name: race.enter(one.run, clock) for name, one in work.items()}
        samples = race.run(entries, clock, self._budget)
        contenders = {
            name: {
                **race.times(samples[name], "tokens_per_second", one.tokens),
                **race.compare(samples, name),
            }
            for name, one in work.items()
        }
        return {
            **self.describe(case),
            "threads": case.threads[0],
            "tokens": work[SDPA].tokens,
            "difference": difference,
            "contenders": contenders,
        }


def tables(record: Mapping[str, Any]) -> str:
    lines, failed = [], []
    for outcome in record["results"]:
        name = outcome["case"]["name"].removeprefix("model, ")
        if "failed" in outcome:
            failed.append(f"Failed: {name}: {outcome['failed']}")
            continue
        contenders = outcome["contenders"]
        rates = [f"{one['tokens_per_second']:,.0f}" for one in contenders.values()]
        ratio = contenders[SDPA]["ratio"]
        spread = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        lines.append([name, *rates, spread])
    header = ("model", "flash_attn2, tokens/s", "SDPA, tokens/s", "times as fast")
    incomplete = "" if record["complete"] else " (incomplete)"
    about = f"{hardware(record)}{incomplete}\n\nProcessor: {processor_of(record)}."
    return "\n\n".join([about, markdown(Table("", header, [lines])), *failed])


def one_line(outcome: Outcome) -> str:
    if "failed" in outcome:
        return f"FAILED: {outcome['failed']}"
    contenders = outcome["contenders"]
    rate = contenders[FLASH_ATTN2]["tokens_per_second"]
    return f"{rate:,.0f} tokens/s, {contenders[SDPA]['ratio']['value']:.2f}x SDPA"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench-results/models.json"))
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases with such a name")
    parser.add_argument("--seconds", type=float, default=15.0, help="per case (default: 15)")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print FILE's table")
    args = parser.parse_args(argv)
    if args.show:
        print(tables(read_record(args.show)))
        return 0
    found = rows(SMALL if args.quick else FULL)
    selected = [case for case in found if re.search(args.cases, case.name)]
    if not selected:
        names = ", ".join(case.name for case in found)
        parser.error(f"--cases {args.cases!r} matches none of {names}")
    torch.set_num_threads(*selected[0].threads)  # as the record says of the machine
    budget = Budget(args.seconds, *(_QUICK_ROUNDS if args.quick else _ROUNDS))
    options = {"cases": args.cases, "seconds": args.seconds, "quick": args.quick}
    return recorded.run(Models(selected, budget), args.output, options, one_line, tables)


if __name__ == "__main__":
    sys.exit(main())

"""Measures how near flash_attn2 comes to what the processor can do, on the CPU.

    python benchmarks/limits.py [--output FILE] [--rows REGEX] [--seconds S] [--quick]
    python benchmarks/limits.py --show FILE

Forward passes beside a loop of multiply-adds between registers (for bf16 the faster of pairs of
bf16 and of float32, as the record says), both passes beside that and SDPA, decoding beside a loop
that reads memory and does nothing else; then level x86-64-v3 beside SDPA that is held to AVX2, in a
process of its own. All contenders of a row take turns, with one thread and with as many as torch
takes. Prints Markdown tables and writes every sample as JSON after each row. About three minutes on
a quiet machine with two cores; needs `pip install "flash_attn2[bench]"` and a C++ compiler ($CXX or
c++), for the loops.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import row_script
import torch
from cpu_peak import reading
from cpu_peers import Timed
from cpu_suite import CpuTable, take_turns
from limit_rows import ENVIRONMENT, READING, DecodeRow, LimitRow, rows

from flash_attn2.bench.decode.contenders import CONTENDERS, DecodeProblem
from flash_attn2.bench.suite import Outcome
from flash_attn2.bench.timing import Budget

_READ_BYTES = 2**28  # as many as the layers of a problem of decoding have at least


class Limits(CpuTable):
    """The rows of the CPU table that are here, and decoding."""

    def environment(self, section: str) -> Mapping[str, str]:
        return ENVIRONMENT.get(section, {})

    def measure_row(self, row: LimitRow) -> Outcome:
        if isinstance(row, DecodeRow):
            return _decoding(row, self.budget)
        return super().measure_row(row)


@torch.inference_mode()
def _decoding(row: DecodeRow, budget: Budget) -> Outcome:
    problem = DecodeProblem.create(row.case, "cpu")

    def build(name: str) -> Timed:
        if name == READING:
            return Timed(reading(_READ_BYTES), _READ_BYTES)
        return Timed(CONTENDERS[name](problem).timed(), row.case.kv_bytes)

    return {"mode": "decode"} | take_turns(row, build, "bytes_per_second", budget)


def main(argv: Sequence[str] | None = None) -> int:
    return row_script.run(argv, __doc__, output="limits.json", seconds=4, rows=rows, suite=Limits)


if __name__ == "__main__":
    sys.exit(main())

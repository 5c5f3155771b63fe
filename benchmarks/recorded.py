"""What the scripts of tables have in common: to measure, to leave a record, to show it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flash_attn2.bench import runner
from flash_attn2.bench.record import Record, read_record
from flash_attn2.bench.suite import Outcome, Suite


def run(
    suite: Suite[Any],
    output: Path,
    options: Mapping[str, Any],
    one_line: Callable[[Outcome], str],
    tables: Callable[[Mapping[str, Any]], str],
) -> int:
    """The script's exit status: not 0 where a case failed or it was interrupted."""
    output.parent.mkdir(parents=True, exist_ok=True)
    done, status = runner.run(suite, Record(output, "cpu", options), one_line)
    if done:
        print(tables(read_record(output)))
        print(f"Wrote {output}", file=sys.stderr)
    return status or int(any("failed" in outcome for outcome in done))

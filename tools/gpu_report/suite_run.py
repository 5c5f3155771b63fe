"""The project's own tests on the GPU, as far as the time goes."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.environments import ROOT
from tools.gpu_report import children

_NO_GPU_NEEDED = ("tools", "docs", "emulator", "bench", "fuzz", "mutants")
_MOST_WORKERS = 8
_LAST_WORDS = 5.0  # seconds for pytest to say what it has
_COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|deselected)")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.*)$", re.MULTILINE)


class SkippedError(Exception):
    """A part that cannot run here; the message says why."""


def command(selection: str) -> list[str]:
    """pytest on the tests whose names hold `selection`. SkippedError without pytest."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    tests = ROOT / "tests"
    words = [sys.executable, "-m", "pytest", "-q", "-k", selection, "-p", "no:cacheprovider"]
    words += ["--tb=short", "-rfE", "--continue-on-collection-errors"]
    words += [f"--ignore={tests / folder}" for folder in _NO_GPU_NEEDED]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(min(os.cpu_count() or 2, _MOST_WORKERS))]
    return words


def run(
    words: list[str], seconds: float, log: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Counts of tests by outcome, and those that failed; `complete`: time was enough for all."""
    start = time.monotonic()
    ended = children.run(words, seconds, log, environment, _LAST_WORDS)
    return summary(ended.output) | {
        "exit_status": ended.status,
        "complete": ended.status is not None,
        "seconds": round(time.monotonic() - start, 1),
    }


def summary(text: str) -> dict[str, Any]:
    """From pytest's words. Where it was killed before its last line, only dots can be counted."""
    lines = [line for line in text.splitlines() if _COUNTS.search(line)]
    counts = (
        {
            what.rstrip("s") if what == "errors" else what: int(number)
            for number, what in _COUNTS.findall(lines[-1])
        }
        if lines
        else {}
    )
    if not counts:
        dots = "".join(line for line in text.splitlines() if re.fullmatch(r"[.FEsxX]+( .*)?", line))
        counts = {"passed": dots.count("."), "failed": dots.count("F")}
    return {"counts": counts, "failures": _FAILED.findall(text)}

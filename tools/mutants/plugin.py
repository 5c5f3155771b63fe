"""A plugin of pytest: which faults of kernels the selected tests notice.

Every test runs once without a fault: how long it takes, and which faults its kernels come to. Then
each of the drawn faults is tried in a process of its own, by the tests that come to it, quick ones
first, until one fails. Tests that fail without a fault are left out.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

_FAILED, _SURVIVED = 1, 0
_SECONDS_TO_END = 3.0  # and twenty times what a test takes without a fault: then it hangs


@dataclass
class _Run:
    """A test without a fault."""

    item: pytest.Item
    seconds: float
    met: set[int]


class MutantsPlugin:
    def __init__(self, module: Any, seed: int, count: int, mutants: dict[int, dict[str, Any]]):
        self._module, self._seed, self._count, self._mutants = module, seed, count, mutants
        self._failure = ""
        self.results: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failure = f"{report.nodeid}: {_first_words(report)}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        runs = [run for run in map(self._without_fault, session.items) if run is not None]
        met = set().union(*(run.met for run in runs)) & self._mutants.keys()
        drawn = random.Random(self._seed).sample(sorted(met), min(self._count, len(met)))
        without = self._with_fault(0, list(runs))
        if without["outcome"] != "survived":
            raise pytest.UsageError(f"tests fail without a fault, too: {without['by']}")
        for done, number in enumerate(sorted(drawn), 1):
            result = self._with_fault(number, [run for run in runs if number in run.met])
            self.results.append(self._mutants[number] | result)
            print(f"{done} of {len(drawn)}: {number} {result['outcome']}", flush=True)
        return True

    def _passes(self, item: pytest.Item) -> bool:
        self._failure = ""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self._failure

    def _without_fault(self, item: pytest.Item) -> _Run | None:
        self._module.faults_met()
        start = time.monotonic()
        passes = self._passes(item)
        met = set(self._module.faults_met())
        return _Run(item, time.monotonic() - start, met) if passes and met else None

    def _with_fault(self, number: int, runs: list[_Run]) -> dict[str, str]:
        runs.sort(key=lambda run: run.seconds)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(self._try(number, runs, writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            words = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _SURVIVED:
            return {"outcome": "survived", "by": ""}
        if status == -signal.SIGALRM:
            return {"outcome": "noticed", "by": "it does not end"}
        return {"outcome": "noticed", "by": words or f"status {status}"}

    def _try(self, number: int, runs: list[_Run], writing: int) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        self._module.choose_fault(number)
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        for run in runs:
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_END + 20 * run.seconds)
            if not self._passes(run.item):
                os.write(writing, self._failure.encode())
                return _FAILED
        return _SURVIVED


def _first_words(report: pytest.TestReport) -> str:
    """Of a report of the emulator, or of a failed assertion."""
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return " ".join(line[1:].strip() for line in lines[:3])[:300]


def read_mutants(folder: Path) -> dict[int, dict[str, Any]]:
    """By number, from the lists that the build has left."""
    lists = sorted(folder.glob("compute_80/*/*.faults.json"))
    return {m["number"]: m for file in lists for m in json.loads(file.read_text())}


def summary(results: list[dict[str, Any]]) -> str:
    """Noticed and survived, by kind; then the survivors."""
    kinds: dict[str, Counter[str]] = {}
    for result in results:
        kinds.setdefault(result["kind"], Counter())[result["outcome"]] += 1
    lines = [f"{'kind':24}noticed survived"]
    lines += [f"{k:24}{c['noticed']:7} {c['survived']:8}" for k, c in sorted(kinds.items())]
    total = sum(kinds.values(), Counter())
    lines.append(f"{'all':24}{total['noticed']:7} {total['survived']:8}")
    for r in results:
        if r["outcome"] == "survived":
            lines.append(f"{r['number']} {r['kind']}, PTX line {r['line']}: {r['instruction']}")
            lines.append(f"    {r['kernel']}")
    return "\n".join(lines)

"""A plugin of pytest: which faults of kernels the selected tests notice.

Every test runs once without a fault: how long it takes, and which faults its kernels come to. Then
each of the drawn faults is tried in a process of its own, by the tests that come to it, quick ones
and those that have noticed others first, until one fails. Tests that fail without a fault are left
out, as they do where a build has not all kernels.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.mutants.faults import ORDER, STRATA
from tools.mutants.record import Record, Run, hash_of
from tools.mutants.report import outcome_of

_FAILED, _SURVIVED = 1, 0
# Of processor time, and so many times what a test takes without a fault: then it does not end. Of
# time on the clock a multiple, in case that it sleeps.
_SECONDS_TO_END, _TIMES_TO_END = 3.0, 5
_CLOCK = 30


@dataclass(frozen=True)
class Selection:
    """Which faults are tried: of kernels whose name matches, up to ``count`` of a stratum, by seed.

    Those of order are all tried. ``numbers``, if any, are tried instead. ``seconds``: as
    much processor time of tests does a fault get; None: until all that come to it have run.
    """

    seed: int
    count: int
    kernels: str = ""
    numbers: frozenset[int] = frozenset()
    seconds: float | None = None

    def of(self, mutants: dict[int, dict[str, Any]], met: set[int]) -> list[int]:
        if self.numbers:
            given = sorted(self.numbers & met & mutants.keys())
            return random.Random(self.seed).sample(given, len(given))
        drawn: list[int] = []
        fitting = [
            (n, m["stratum"])
            for n, m in sorted(mutants.items())
            if n in met and re.search(self.kernels, m["kernel"])
        ]
        for stratum in STRATA:
            candidates = [n for n, its_stratum in fitting if its_stratum == stratum]
            draw = random.Random(self.seed)
            whole = stratum == ORDER
            drawn += draw.sample(
                candidates, len(candidates) if whole else min(self.count, len(candidates))
            )
        return drawn


class MutantsPlugin:
    def __init__(
        self, module: Any, selection: Selection, mutants: dict[int, dict[str, Any]], record: Record
    ) -> None:
        self._module, self._selection, self._mutants = module, selection, mutants
        self._record = record
        self._failure: dict[str, str] = {}
        self._successes: Counter[str] = Counter()  # faults that a test has noticed
        self.results: list[dict[str, Any]] = []
        self.not_met: list[int] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failure = {"test": report.nodeid, "words": _first_words(report)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        runs = self._without_faults(session.items)
        met = set().union(*(run.met for run in runs.values()))
        drawn = self._selection.of(self._mutants, met)
        self.not_met = sorted(self._mutants.keys() - met)
        print(f"{len(runs)} tests come to {len(met)} faults", flush=True)
        for done, number in enumerate(drawn, 1):
            result = self._outcome(number, runs)
            self.results.append(self._mutants[number] | result)
            print(f"{done} of {len(drawn)}: {number} {result['outcome']}", flush=True)
            if done % 20 == 0:
                self._record.save()
        self._record.save()
        return True

    def _passes(self, item: pytest.Item) -> bool:
        self._failure = {}
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self._failure

    def _without_faults(self, items: list[pytest.Item]) -> dict[pytest.Item, Run]:
        """The tests that pass and come to a fault."""
        files = {path: hash_of(path) for path in {item.path for item in items}}
        runs = {}
        for done, item in enumerate(items):
            run = self._record.run_of(item.nodeid, files[item.path])
            if run is None:
                self._module.faults_met()
                start = time.process_time()
                passes = self._passes(item)
                seconds = time.process_time() - start
                run = Run(passes, seconds, frozenset(self._module.faults_met()))
                self._record.keep_run(item.nodeid, files[item.path], run)
            if run.passes and run.met:
                runs[item] = run
            if done % 10 == 9:
                self._record.save()
        self._record.save()
        return runs

    def _outcome(self, number: int, runs: dict[pytest.Item, Run]) -> dict[str, str]:
        known = self._record.noticed(number, (item.nodeid for item in runs))
        if known is not None:
            self._successes[known["test"]] += 1
            return known
        meeting = [(item, run) for item, run in runs.items() if number in run.met]
        meeting = self._affordable(meeting)
        failure = self._try_fault(number, meeting)
        if failure is None:
            return {"outcome": "survived", "words": f"{len(meeting)} tests"}
        test = failure["test"]
        self._check(next(pair for pair in meeting if pair[0].nodeid == test))
        self._successes[test] += 1
        self._record.keep_noticed(number, failure)
        return failure

    def _check(self, pair: tuple[pytest.Item, Run]) -> None:
        """That a test passes without a fault in a process of its own, too."""
        name = pair[0].nodeid
        if not self._successes[name] and self._try_fault(0, [pair]) is not None:
            raise pytest.UsageError(f"{name} fails without a fault, too")

    def _affordable(self, meeting: list[tuple[pytest.Item, Run]]) -> list[tuple[pytest.Item, Run]]:
        """Quick tests first, and those that have noticed others; as many as there is time for."""
        meeting.sort(key=lambda pair: pair[1].seconds / (1 + self._successes[pair[0].nodeid]))
        if self._selection.seconds is None:
            return meeting
        ends = itertools.accumulate(run.seconds for _, run in meeting)
        return [
            pair
            for at, (pair, end) in enumerate(zip(meeting, ends, strict=True))
            if at == 0 or end <= self._selection.seconds
        ]

    def _try_fault(
        self, number: int, meeting: list[tuple[pytest.Item, Run]]
    ) -> dict[str, str] | None:
        """How the first test that fails does; None if none does."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(self._try(number, meeting, writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            lines = pipe.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _SURVIVED:
            return None
        if status == _FAILED:
            failure: dict[str, str] = json.loads(lines[-1])
            return {"outcome": outcome_of(failure["words"])} | failure
        hangs = -status in (signal.SIGALRM, signal.SIGPROF)
        words = "it does not end" if hangs else f"status {status}"
        return {
            "outcome": "hangs" if hangs else "wrong",
            "test": json.loads(lines[-1]),
            "words": words,
        }

    def _try(self, number: int, meeting: list[tuple[pytest.Item, Run]], writing: int) -> int:
        """In the child: writes the name of each test before it runs, at last how one fails."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        self._module.choose_fault(number)
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        for item, run in meeting:
            os.write(writing, (json.dumps(item.nodeid) + "\n").encode())
            seconds = _SECONDS_TO_END + _TIMES_TO_END * run.seconds
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, _CLOCK * seconds)
            if not self._passes(item):
                os.write(writing, json.dumps(self._failure).encode())
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

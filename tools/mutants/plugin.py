"""A plugin of pytest: which faults of kernels the selected tests notice.

Every test runs once without a fault: how long it takes, and which faults its kernels come to. Then
each of the drawn faults is tried in a process of its own, by the tests that come to it, quick ones
and those that have noticed others first, until one fails: all faults by a few seconds of tests,
then those that are left by the others. Tests that fail without a fault are left out, as they do
where a build has not all kernels.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from tools.mutants.faults import ORDER, STRATA
from tools.mutants.record import Record, Run, hash_of
from tools.mutants.report import outcome_of

_FAILED, _SURVIVED = 1, 0
_FIRST_SECONDS = 3.0  # of tests that a fault gets before all others have got as much
# Of processor time, and so many times what a test takes without a fault: then it does not end. Of
# time on the clock a multiple, in case that it sleeps.
_SECONDS_TO_END, _TIMES_TO_END = 3.0, 5
_CLOCK = 30
_LEFT = {"outcome": "survived"}


@dataclass(frozen=True)
class Selection:
    """Which faults are tried: of kernels that match, up to ``count`` of a stratum, by seed.

    Those of order are all tried. ``numbers``, if any, are tried instead. ``seconds``: as
    much processor time of tests does a fault get in the end; None: all that come to it.
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
            if n in met and re.search(self.kernels, f"{m['unit']} {m['kernel']}")
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
    """Tries faults of a module; ``jobs``: in so many processes at a time."""

    def __init__(
        self,
        module: Any,
        selection: Selection,
        mutants: dict[int, dict[str, Any]],
        record: Record,
        jobs: int = 1,
    ) -> None:
        self._module, self._selection, self._mutants = module, selection, mutants
        self._record, self._jobs = record, jobs
        self._failure: dict[str, str] = {}
        self._successes: Counter[str] = Counter()  # faults that a test has noticed
        # Held while a process forks, or the lock of the output might be taken in it for ever.
        self._forking = Lock()
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
        self._say(f"{len(runs)} tests come to {len(met)} faults")
        outcomes: dict[int, dict[str, str]] = {}
        all_seconds = self._selection.seconds
        first = _FIRST_SECONDS if all_seconds is None else min(_FIRST_SECONDS, all_seconds)
        for seconds in dict.fromkeys((first, all_seconds)):
            left = [n for n in drawn if outcomes.get(n, _LEFT)["outcome"] == _LEFT["outcome"]]
            tried = self._several(partial(self._outcome, runs, seconds), left)
            for done, (number, outcome) in enumerate(zip(left, tried, strict=True), 1):
                outcomes[number] = outcome
                self._say(f"{done} of {len(left)}: {number} {outcome['outcome']}")
                if done % 20 == 0:
                    self._record.save()
            self._record.save()
        self.results = [self._mutants[number] | outcomes[number] for number in drawn]
        return True

    def _say(self, words: str) -> None:
        with self._forking:
            print(words, flush=True)

    def _several(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results of ``work``, which forks, in the order of items."""
        with ThreadPoolExecutor(self._jobs) as pool:
            yield from pool.map(work, items)

    def _passes(self, item: pytest.Item) -> bool:
        self._failure = {}
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self._failure

    def _without_faults(self, items: list[pytest.Item]) -> dict[pytest.Item, Run]:
        """The tests that pass and come to a fault."""
        files = {path: hash_of(path) for path in {item.path for item in items}}
        known = {item: self._record.run_of(item.nodeid, files[item.path]) for item in items}
        unknown = [item for item, run in known.items() if run is None]
        ran = self._several(self._run_without_fault, unknown)
        for done, (item, run) in enumerate(zip(unknown, ran, strict=True), 1):
            known[item] = run
            self._record.keep_run(item.nodeid, files[item.path], run)
            if done % 50 == 0:
                self._say(f"{done} of {len(unknown)} tests")
                self._record.save()
        self._record.save()
        return {item: run for item, run in known.items() if run and run.passes and run.met}

    def _run_without_fault(self, item: pytest.Item) -> Run:
        def measure(writing: int) -> int:
            self._module.faults_met()
            start = time.process_time()
            passes = self._passes(item)
            seconds = time.process_time() - start
            os.write(writing, json.dumps([passes, seconds]).encode() + b"\n")
            _write_all(writing, json.dumps(list(self._module.faults_met())).encode())
            return _SURVIVED

        status, lines = self._in_child(0, measure)
        if status != _SURVIVED:
            return Run(False, 0.0, frozenset())
        passes, seconds = json.loads(lines[0])
        return Run(passes, seconds, frozenset(json.loads(lines[1])))

    def _outcome(
        self, runs: dict[pytest.Item, Run], seconds: float | None, number: int
    ) -> dict[str, str]:
        known = self._record.noticed(number, (item.nodeid for item in runs))
        if known is not None:
            self._successes[known["test"]] += 1
            return known
        meeting = [(item, run) for item, run in runs.items() if number in run.met]
        affordable = self._affordable(meeting, seconds)
        withstood = self._record.withstood(number)
        meeting = [pair for pair in affordable if pair[0].nodeid not in withstood]
        failure = self._try_fault(number, meeting) if meeting else None
        if failure is None:
            self._record.keep_withstood(number, (item.nodeid for item, _ in meeting))
            return _LEFT | {"words": f"{len(affordable)} tests"}
        self._successes[failure["test"]] += 1
        self._record.keep_noticed(number, failure)
        return failure

    def _affordable(
        self, meeting: list[tuple[pytest.Item, Run]], seconds: float | None
    ) -> list[tuple[pytest.Item, Run]]:
        """Quick tests first, and those that have noticed others; as many as there is time for."""
        meeting.sort(key=lambda pair: pair[1].seconds / (1 + self._successes[pair[0].nodeid]))
        if seconds is None:
            return meeting
        ends = itertools.accumulate(run.seconds for _, run in meeting)
        return [
            pair
            for at, (pair, end) in enumerate(zip(meeting, ends, strict=True))
            if at == 0 or end <= seconds
        ]

    def _try_fault(
        self, number: int, meeting: list[tuple[pytest.Item, Run]]
    ) -> dict[str, str] | None:
        """How the first test that fails does; None if none does."""
        status, lines = self._in_child(number, lambda writing: self._try(meeting, writing))
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

    def _in_child(self, number: int, work: Callable[[int], int]) -> tuple[int, list[str]]:
        """The status of a process in which a fault is chosen, and the lines that it has written."""
        with self._forking:
            reading, writing = os.pipe()
            child = os.fork()
            if child != 0:
                os.close(writing)
        if child == 0:
            _die_with_parent()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            torch.set_num_threads(1)  # the threads of the parent do not exist here
            self._module.choose_fault(number)
            os._exit(work(writing))
        with os.fdopen(reading) as pipe:
            lines = pipe.read().splitlines()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines

    def _try(self, meeting: list[tuple[pytest.Item, Run]], writing: int) -> int:
        """In the child: writes the name of each test before it runs, at last how one fails."""
        for item, run in meeting:
            os.write(writing, (json.dumps(item.nodeid) + "\n").encode())
            seconds = _SECONDS_TO_END + _TIMES_TO_END * run.seconds
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, _CLOCK * seconds)
            if not self._passes(item):
                os.write(writing, json.dumps(self._failure).encode())
                return _FAILED
        return _SURVIVED


def _die_with_parent() -> None:
    set_parent_death_signal = 1  # of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _first_words(report: pytest.TestReport) -> str:
    """Of a report of the emulator, but for the kernel's long name, or of a failed assertion."""
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    words = " ".join(line[1:].strip() for line in lines[:3])
    return re.sub(r"(kernel emulator: ).*?(grid \()", r"\1\2", words)[:400]


def read_mutants(folder: Path) -> dict[int, dict[str, Any]]:
    """By number, with their ``unit``, from the lists that the build has left of these units."""
    lists = sorted(folder.glob("*/*.faults.json"))
    return {
        m["number"]: m | {"unit": file.parent.name}
        for file in lists
        for m in json.loads(file.read_text())
    }

"""The suite of the CPU table: rows, each timed with one thread and with all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import peer_rows
import peer_suite
import torch
from cpu_peers import Timed, build
from cpu_rows import ENVIRONMENT, ONE_THREAD, THREADS, AnyRow, ErrorRow, Goal, MemoryRow, Row

from flash_attn2 import build_info
from flash_attn2.bench import accuracy, memory, race, timing
from flash_attn2.bench.contenders import CONTENDERS, SDPA, Problem
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome, Suite

TableRow = AnyRow | peer_rows.PeerRow


class CpuTable(Suite[TableRow]):
    """Sections run in processes of their own, so that each can have its own environment."""

    def __init__(self, cases: Sequence[TableRow], budget: timing.Budget) -> None:
        self.cases = cases
        self.budget = budget

    def section(self, case: TableRow) -> str:
        return case.section

    def environment(self, section: str) -> Mapping[str, str]:
        return (ENVIRONMENT | peer_rows.ENVIRONMENT).get(section, {})

    def describe(self, case: TableRow) -> Outcome:
        return {
            "section": case.section,
            "title": case.title,
            "case": dataclasses.asdict(case.case),
            "environment": self.environment(case.section),
        }

    def measure(self, case: TableRow) -> Outcome:
        isa = {
            "flash_attn2": build_info()["cpu"]["isa"],
            "torch": torch.backends.cpu.get_cpu_capability(),
        }
        return self.describe(case) | {"isa": isa} | self.measure_row(case)

    def measure_row(self, row: TableRow) -> Outcome:
        """What a line says of a row beside what the row and its process are."""
        if isinstance(row, ErrorRow):
            return _errors(row)
        if isinstance(row, MemoryRow):
            return _memory(row)
        if isinstance(row, peer_rows.PeerRow):
            return peer_suite.measure(row, self.budget)
        with contextlib.nullcontext() if row.mode.gradients else torch.inference_mode():
            return _times(row, self.budget)


class _OnThreads(NamedTuple):
    timed: Timed
    threads: int


class _Clock(timing.CpuClock):
    """Sets the number of threads before each sample."""

    def measure(self, run: Any, calls: int) -> float:
        torch.set_num_threads(run.threads)
        return super().measure(run.timed.run, calls)


class Turns(Protocol):
    """A row whose contenders take turns."""

    @property
    def threads(self) -> tuple[int, ...]: ...

    @property
    def goals(self) -> Mapping[str, Goal]: ...


def _times(row: Row, budget: timing.Budget) -> Outcome:
    problem = Problem.create(row.case, "cpu", gradients=row.mode.gradients)
    turns = take_turns(row, lambda name: build(name, row, problem), "flops_per_second", budget)
    return {"mode": row.mode.name} | turns


def take_turns(
    row: Turns, build: Callable[[str], Timed], rate: str, budget: timing.Budget
) -> Outcome:
    """flash_attn2 and those that it has goals against, each with every number of threads.

    `build` makes a contender's run by its name, or raises where it cannot; `rate` is what work over
    seconds is called in the record.
    """
    clock = _Clock()

    def enter(name: str) -> dict[int, race.Entry]:
        torch.set_num_threads(max(row.threads))
        one = build(name)
        return {threads: race.enter(_OnThreads(one, threads), clock) for threads in row.threads}

    names = (FLASH_ATTN2, *(name for name in row.goals if name != ONE_THREAD))
    ready, unavailable = race.prepare(names, enter)
    entries = {
        f"{name}/{threads}": entry
        for name, by_threads in ready.items()
        for threads, entry in by_threads.items()
    }
    samples = race.run(entries, clock, budget)
    work = {key: entry.run.timed.work for key, entry in entries.items()}
    contenders = race.blank(names, unavailable)
    for key in entries:
        name, threads = key.rsplit("/", 1)
        times = race.times(samples[key], rate, work[key])
        variant = entries[key].run.timed.variant
        contenders[name][threads] = times | ({"variant": variant} if variant else {})
    goals = [_compare(row, name, goal, work, samples) for name, goal in row.goals.items()]
    return {"contenders": contenders, "goals": goals}


def _compare(
    row: Turns,
    against: str,
    goal: Goal,
    work: Mapping[str, float],
    samples: Mapping[str, timing.Samples],
) -> Outcome:
    """How many times flash_attn2's rate is the other's, by number of threads."""
    figures = {}
    for threads in row.threads:
        ours = f"{FLASH_ATTN2}/{threads}"
        theirs = f"{FLASH_ATTN2}/1" if against == ONE_THREAD else f"{against}/{threads}"
        if ours == theirs or theirs not in samples:
            continue
        ratio = dataclasses.asdict(timing.compare(samples[ours], samples[theirs]))
        more = work[ours] / work[theirs]
        figures[str(threads)] = {name: value * more for name, value in ratio.items()}
    return {"against": against, "must": goal.must, "aim": goal.aim, "figures": figures}


def _errors(row: ErrorRow) -> Outcome:
    with torch.inference_mode():
        problem = Problem.create(row.case, "cpu")
        calls = {name: CONTENDERS[name](problem)[""]() for name in (FLASH_ATTN2, SDPA)}
        outputs = {name: call.rows(call.run()) for name, call in calls.items()}
        errors = accuracy.measure(problem, outputs)
    largest = {name: errors.largest(name) for name in outputs}
    return {
        "errors": largest,
        "most": row.most,
        "times_as_large": largest[FLASH_ATTN2] / largest[SDPA],
        "share_checked": errors.checked,
    }


def _memory(row: MemoryRow) -> Outcome:
    torch.set_num_threads(max(THREADS))
    peaks = {name: memory.cpu_peak(row.case, name, "", row.mode) for name in (FLASH_ATTN2, SDPA)}
    return {
        "mode": row.mode.name,
        "result_bytes": _result_bytes(row),
        "extra_bytes": peaks,
    }


def _result_bytes(row: MemoryRow) -> int:
    """Of the output, of lse, and of the gradients of q, k and v."""
    case = row.case
    heads = case.num_heads
    if row.mode.gradients:
        heads += case.num_heads + 2 * case.num_heads_kv
    rows = heads * case.head_dim * case.torch_dtype.itemsize + case.num_heads * 4
    return case.total * rows

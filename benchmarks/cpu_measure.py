"""Measures rows of the CPU table, each section in a process of its own.

A section can then have its own environment, and a row that crashes or hangs costs nothing but
itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from cpu_peers import Timed, build
from cpu_rows import ENVIRONMENT, ONE_THREAD, THREADS, AnyRow, ErrorRow, Goal, MemoryRow, Row

from flash_attn2 import build_info
from flash_attn2.bench import accuracy, memory, timing
from flash_attn2.bench.contenders import CONTENDERS, FLASH_ATTN2, SDPA, Problem
from flash_attn2.bench.record import rounded

Outcome = dict[str, Any]  # a line of the record

_LIMIT = 300.0  # seconds that a row may take


def measure_all(rows: Sequence[AnyRow], budget: timing.Budget) -> Iterator[tuple[AnyRow, Outcome]]:
    """The outcome of each row, as it comes."""
    for section, members in groupby(rows, key=lambda row: row.section):
        waiting = list(members)
        while waiting:  # anew after a row that took its process with it
            for outcome in _in_child(section, tuple(waiting), budget):
                yield waiting.pop(0), outcome


def _in_child(section: str, rows: Sequence[AnyRow], budget: timing.Budget) -> Iterator[Outcome]:
    """Outcomes of `rows` up to and including the first that does not come back."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_outcomes, args=(sender, rows, budget))
    with _environment(ENVIRONMENT.get(section, {})):
        child.start()
    sender.close()
    try:
        for row in rows:
            if not receiver.poll(_LIMIT):
                yield _failed(row, f"no result after {_LIMIT:g} s")
                return
            try:
                yield receiver.recv()
            except EOFError:
                yield _failed(row, "its process died")
                return
    finally:
        child.kill()
        child.join()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _send_outcomes(sender: Connection, rows: Sequence[AnyRow], budget: timing.Budget) -> None:
    for row in rows:
        try:
            outcome = measure(row, budget)
        except Exception as error:
            traceback.print_exc()
            outcome = _failed(row, f"{type(error).__name__}: {error}")
        sender.send(outcome)


def measure(row: AnyRow, budget: timing.Budget) -> Outcome:
    isa = {
        "flash_attn2": build_info()["cpu"]["isa"],
        "torch": torch.backends.cpu.get_cpu_capability(),
    }
    return _describe(row) | {"isa": isa} | _measure(row, budget)


def _measure(row: AnyRow, budget: timing.Budget) -> Outcome:
    if isinstance(row, ErrorRow):
        return _errors(row)
    if isinstance(row, MemoryRow):
        return _memory(row)
    with contextlib.nullcontext() if row.mode.gradients else torch.inference_mode():
        return _times(row, budget)


def _describe(row: AnyRow) -> Outcome:
    return {
        "section": row.section,
        "title": row.title,
        "case": dataclasses.asdict(row.case),
        "environment": ENVIRONMENT.get(row.section, {}),
    }


def _failed(row: AnyRow, reason: str) -> Outcome:
    return _describe(row) | {"failed": reason}


class _OnThreads(NamedTuple):
    timed: Timed
    threads: int


class _Clock(timing.CpuClock):
    """Sets the number of threads before each sample."""

    def measure(self, run: Any, calls: int) -> float:
        torch.set_num_threads(run.threads)
        return super().measure(run.timed.run, calls)


def _times(row: Row, budget: timing.Budget) -> Outcome:
    problem = Problem.create(row.case, "cpu", gradients=row.mode.gradients)
    runs: dict[str, _OnThreads] = {}
    estimates: dict[str, float] = {}
    unavailable: dict[str, str] = {}
    clock = _Clock()
    for name in (FLASH_ATTN2, *(name for name in row.goals if name != ONE_THREAD)):
        torch.set_num_threads(max(row.threads))
        try:
            one = build(name, row, problem)
            mine = {f"{name}/{threads}": _OnThreads(one, threads) for threads in row.threads}
            estimates |= {key: timing.estimate(run, clock) for key, run in mine.items()}
        except Exception as error:
            if name == FLASH_ATTN2:
                raise
            unavailable[name] = str(error).splitlines()[0][:200]
            continue
        runs |= mine
    samples = timing.interleave(runs, {key: estimates[key] for key in runs}, clock, budget)
    contenders: dict[str, Any] = {name: {"unavailable": why} for name, why in unavailable.items()}
    for key, run in runs.items():
        name, threads = key.rsplit("/", 1)
        seconds = timing.median(samples[key])
        contenders.setdefault(name, {})[threads] = {
            "seconds": seconds,
            "flops_per_second": run.timed.flops / seconds,
            "samples": rounded(samples[key]),
        }
    goals = [_compare(row, name, goal, runs, samples) for name, goal in row.goals.items()]
    return {"mode": row.mode.name, "contenders": contenders, "goals": goals}


def _compare(
    row: Row,
    against: str,
    goal: Goal,
    runs: dict[str, _OnThreads],
    samples: dict[str, timing.Samples],
) -> Outcome:
    """How many times flash_attn2's rate is the other's, by number of threads."""
    figures = {}
    for threads in row.threads:
        ours = f"{FLASH_ATTN2}/{threads}"
        theirs = f"{FLASH_ATTN2}/1" if against == ONE_THREAD else f"{against}/{threads}"
        if ours == theirs or theirs not in runs:
            continue
        ratio = timing.compare(samples[ours], samples[theirs])
        work = runs[ours].timed.flops / runs[theirs].timed.flops
        figures[str(threads)] = {
            "value": ratio.value * work,
            "low": ratio.low * work,
            "high": ratio.high * work,
        }
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
    peaks = {
        name: memory.PeakMemory(max(THREADS)).measure(row.case, name, "", row.mode)
        for name in (FLASH_ATTN2, SDPA)
    }
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

"""One row beside every runtime: all are prepared, compared with float64, and then take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import peers
import torch
from peer_rows import PeerRow
from peers.interface import Attention, Prepared
from torch import Tensor

from flash_attn2.bench import accuracy, race, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import CONTENDERS, SDPA, Problem
from flash_attn2.bench.decode import accuracy as decode_accuracy
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import CONTENDERS as DECODE_CONTENDERS
from flash_attn2.bench.decode.contenders import DecodeProblem
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome, UnavailableError

_PAUSE = 5e-3  # seconds, in which all threads of the contender before fall asleep
_SHORT = 0.02  # seconds; calls that waking one's own threads would make longer
# How many times SDPA's error another's may be. In half precision some add up in it as well.
_WORSE = {torch.float32: 4.0, torch.bfloat16: 32.0, torch.float16: 32.0}
_LONGER = 3.0  # times as long as other rows: there are so many contenders


class _Way(NamedTuple):
    variant: str
    prepared: Prepared
    seconds: float  # as estimated


class _QuietClock(timing.CpuClock):
    """Whoever ran before sleeps when a sample begins, and whoever runs is awake."""

    def __init__(self) -> None:
        self._seconds: WeakKeyDictionary[timing.Run, float] = WeakKeyDictionary()

    def measure(self, run: timing.Run, calls: int) -> float:
        time.sleep(_PAUSE)
        if self._seconds.get(run, _SHORT) < _SHORT:
            run()
        seconds = super().measure(run, calls)
        self._seconds[run] = seconds
        return seconds


@dataclass(frozen=True)
class _Job:
    """The tensors of a row, and what differs between attention and decoding."""

    attention: Attention
    own: Callable[[str], Prepared]  # of flash_attn2 and SDPA
    errors: Callable[[Mapping[str, Tensor]], accuracy.Errors]
    rate: str
    work: float
    mode: str


def measure(row: PeerRow, budget: timing.Budget) -> Outcome:
    """What a record says of a row besides its case; see flash_attn2.bench.beside."""
    torch.set_num_threads(*row.threads)
    with torch.inference_mode():
        job = _decoding(row, row.case) if isinstance(row.case, DecodeCase) else _forward(row)
        return _measure(row, job, budget)


def _measure(row: PeerRow, job: _Job, budget: timing.Budget) -> Outcome:
    clock = _QuietClock()
    names = (FLASH_ATTN2, *row.contenders)
    missing: set[str] = set()

    def build(name: str) -> _Way:
        try:
            return _prepare(name, job, clock)
        except UnavailableError:  # for good reason
            raise
        except Exception:
            missing.add(name)
            raise

    ready, unavailable = race.prepare(names, build)
    errors = _errors(job, ready)
    for name in _too_wrong(errors, job.attention.q.dtype):
        missing.add(name)
        unavailable[name] = f"error {errors[name] / errors[SDPA]:.1f} times SDPA's"
        del ready[name]
    entries = {name: race.Entry(way.prepared.run, way.seconds) for name, way in ready.items()}
    longer = timing.Budget(budget.seconds * _LONGER, budget.min_rounds, budget.max_rounds)
    samples = race.run(entries, clock, longer)
    contenders = race.blank(names, unavailable)
    for name, way in ready.items():
        contenders[name] = {
            **race.times(samples[name], job.rate, job.work),
            **race.compare(samples, name),
            "error": errors[name],
            "precision": way.prepared.precision,
            "variant": way.variant,
        }
    return {
        "mode": job.mode,
        "threads": row.threads[0],
        "contenders": contenders,
        "must": row.goal.must,
        "aim": row.goal.aim,
        "missing": sorted(missing),
    }


def _prepare(name: str, job: _Job, clock: timing.Clock) -> _Way:
    """The fastest way, where there are several; raises where there is none."""
    if name not in peers.NAMES:
        prepared = job.own(name)
        return _Way("", prepared, timing.estimate(prepared.run, clock))
    ways, reasons = [], []
    for variant, prepare in peers.variants(name, job.attention).items():
        try:
            prepared = prepare()
            ways.append(_Way(variant, prepared, timing.estimate(prepared.run, clock)))
        except Exception as error:
            reasons.append(error)
    if not ways:
        raise reasons[0]
    return min(ways, key=lambda way: way.seconds)


def _errors(job: _Job, ready: Mapping[str, _Way]) -> dict[str, float]:
    """The largest, against float64."""
    outputs = {name: way.prepared.result().flatten(0, 1) for name, way in ready.items()}
    errors = job.errors(outputs)
    return {name: errors.contenders[name]["out"] for name in outputs}


def _too_wrong(errors: Mapping[str, float], dtype: torch.dtype) -> list[str]:
    allowed = _WORSE[dtype] * errors[SDPA]
    wrong = [name for name, error in errors.items() if error > allowed]
    if FLASH_ATTN2 in wrong:
        times = errors[FLASH_ATTN2] / errors[SDPA]
        raise RuntimeError(f"flash_attn2's error is {times:.1f} times SDPA's")
    return wrong


def _forward(row: PeerRow) -> _Job:
    case = row.case
    assert isinstance(case, Case)
    problem = Problem.create(case, "cpu")
    batch = len(case.seqlens)

    def own(name: str) -> Prepared:
        (call,) = (variant() for variant in CONTENDERS[name](problem).values())

        def result() -> Tensor:
            return call.rows(call.run()).unflatten(0, (batch, -1))

        return Prepared(call.run, result, case.dtype)

    q, k, v = (one.unflatten(0, (batch, -1)) for one in (problem.q, problem.k, problem.v))
    return _Job(
        Attention(q, [(k, v)], case.causal, *row.threads),
        own,
        lambda outputs: accuracy.measure(problem, outputs),
        "flops_per_second",
        case.flops,
        "fwd",
    )


def _decoding(row: PeerRow, case: DecodeCase) -> _Job:
    problem = DecodeProblem.create(case, "cpu")

    def own(name: str) -> Prepared:
        call = DECODE_CONTENDERS[name](problem)
        return Prepared(call.timed(), lambda: call.result(problem)[:, None], case.dtype)

    return _Job(
        Attention(problem.q, problem.layers, False, *row.threads, cache=True),
        own,
        lambda outputs: decode_accuracy.measure(problem, outputs),
        "bytes_per_second",
        case.kv_bytes,
        "decode",
    )

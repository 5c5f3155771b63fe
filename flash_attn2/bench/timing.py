"""Interleaved timing: in every round each contender runs once, so that noise hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Run = Callable[[], Any]
Samples = dict[int, float]  # round -> seconds per call

_SHORTEST_SAMPLE = 1e-3  # seconds; shorter calls are repeated within a sample (CPU only)
_FLUSHED = 2**29  # bytes, at least: a sixth of a millisecond at 3 TB/s


@dataclass(frozen=True)
class Budget:
    """How long to measure one case, all contenders together."""

    seconds: float
    min_rounds: int
    max_rounds: int


@dataclass(frozen=True)
class Ratio:
    """Ratio of medians; half of the rounds gave a ratio between `low` and `high`."""

    value: float
    low: float
    high: float


class Clock(Protocol):
    def measure(self, run: Run, calls: int) -> float:
        """Seconds per call of `run`, which is called `calls` times."""

    def calls_per_sample(self, estimate: float) -> int:
        """How many calls of `estimate` seconds make a sample long enough to be measured."""


class CpuClock:
    def measure(self, run: Run, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def calls_per_sample(self, estimate: float) -> int:
        return max(1, math.ceil(_SHORTEST_SAMPLE / max(estimate, 1e-9)))


class CudaClock:
    """Times on the device, after overwriting the L2 cache so that inputs come from memory.

    That takes the device long enough for the call to be enqueued meanwhile: what the host does is
    not in the time.
    """

    def __init__(self) -> None:
        self._start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        size = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(max(size, _FLUSHED), dtype=torch.uint8, device="cuda")

    def measure(self, run: Run, calls: int) -> float:
        milliseconds = 0.0
        for _ in range(calls):
            self._flush.zero_()
            self._start.record()
            run()
            self._end.record()
            self._end.synchronize()
            milliseconds += self._start.elapsed_time(self._end)
        return milliseconds / calls / 1e3

    def calls_per_sample(self, estimate: float) -> int:
        del estimate
        return 1


def clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def estimate(run: Run, clock: Clock) -> float:
    """Warms `run` up and returns its time in seconds, from the better of two more calls."""
    first = clock.measure(run, 1)
    if first > 1.0:  # slow enough for cold caches not to matter
        return first
    return min(clock.measure(run, 1) for _ in range(2))


def plan_rounds(estimates: Mapping[str, float], budget: Budget) -> list[list[str]]:
    """Who runs in which round.

    The contenders share the time equally. One that is too slow to run in every round runs in
    fewer of them, evenly spread, but in no fewer than `budget.min_rounds`. The order rotates.
    """
    share = budget.seconds / len(estimates)
    counts = {
        name: int(min(max(share / max(seconds, 1e-9), budget.min_rounds), budget.max_rounds))
        for name, seconds in estimates.items()
    }
    num_rounds = max(counts.values())
    rounds = []
    for index in range(num_rounds):
        names = [
            name
            for name, count in counts.items()
            if (index + 1) * count // num_rounds > index * count // num_rounds
        ]
        turn = index % len(names) if names else 0
        rounds.append(names[turn:] + names[:turn])
    return rounds


def interleave(
    runs: Mapping[str, Run], estimates: Mapping[str, float], clock: Clock, budget: Budget
) -> dict[str, Samples]:
    """Measures all `runs` in turns."""
    calls = {name: clock.calls_per_sample(seconds) for name, seconds in estimates.items()}
    samples: dict[str, Samples] = {name: {} for name in runs}
    for index, names in enumerate(plan_rounds(estimates, budget)):
        for name in names:
            samples[name][index] = clock.measure(runs[name], calls[name])
    return samples


def median(samples: Samples) -> float:
    return statistics.median(samples.values())


def compare(ours: Samples, theirs: Samples) -> Ratio:
    """How many times longer `theirs` takes; the spread is over rounds that both ran in."""
    ratios = [theirs[index] / ours[index] for index in ours.keys() & theirs.keys()]
    return Ratio(median(theirs) / median(ours), *quartiles(ratios))


def quartiles(values: Iterable[float]) -> tuple[float, float]:
    """The lower and the upper one."""
    values = list(values)
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high

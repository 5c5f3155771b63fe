"""Runs one case: times the contenders in turns with reading memory, and checks their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flash_attn2.bench import timing
from flash_attn2.bench.accuracy import Errors
from flash_attn2.bench.contenders import FLASH_ATTN2, UnavailableError
from flash_attn2.bench.decode import accuracy
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import (
    CONTENDERS,
    DecodeCall,
    DecodeProblem,
    read_memory,
)

_READ = "reading memory"


@dataclass(frozen=True)
class Measurement:
    """One contender in one case."""

    samples: timing.Samples
    seconds: float  # median
    bytes_per_second: float  # of keys and values
    error: float | None


@dataclass(frozen=True)
class Result:
    case: DecodeCase
    measurements: Mapping[str, Measurement]
    unavailable: Mapping[str, str]  # contender -> why it did not run
    ratios: Mapping[str, timing.Ratio]  # of the others' times over flash_attn2's
    read: timing.Samples
    read_bytes_per_second: float  # what the machine can do, measured between the contenders
    errors: Errors

    def share(self, contender: str) -> float:
        """Of the speed at which memory can be read."""
        return self.measurements[contender].bytes_per_second / self.read_bytes_per_second


class Runner:
    """Measures cases on one device; `budget` bounds the time per case."""

    def __init__(self, device: str, budget: timing.Budget) -> None:
        self._device = device
        self._budget = budget
        self._clock: timing.Clock = timing.CudaClock() if device == "cuda" else timing.CpuClock()
        self._read, self._read_bytes = read_memory(device)

    def run(self, case: DecodeCase) -> Result:
        with torch.inference_mode():
            return self._run(case)

    def _run(self, case: DecodeCase) -> Result:
        problem = DecodeProblem.create(case, self._device)
        calls: dict[str, DecodeCall] = {}
        unavailable: dict[str, str] = {}
        for name, build in CONTENDERS.items():
            try:
                calls[name] = build(problem)
            except UnavailableError as reason:
                unavailable[name] = str(reason)
            except torch.cuda.OutOfMemoryError:
                if name == FLASH_ATTN2:
                    raise
                unavailable[name] = "out of memory"
        results = {name: call.result(problem) for name, call in calls.items()}
        errors = accuracy.measure(problem, results)
        runs = {name: call.timed() for name, call in calls.items()} | {_READ: self._read}
        estimates = {name: timing.estimate(run, self._clock) for name, run in runs.items()}
        samples = timing.interleave(runs, estimates, self._clock, self._budget)
        read = samples.pop(_READ)
        measurements = {}
        for name, of_contender in samples.items():
            seconds = timing.median(of_contender)
            measurements[name] = Measurement(
                of_contender, seconds, case.kv_bytes / seconds, errors.largest(name)
            )
        ratios = {
            name: timing.compare(samples[FLASH_ATTN2], of_contender)
            for name, of_contender in samples.items()
            if name != FLASH_ATTN2
        }
        bandwidth = self._read_bytes / timing.median(read)
        return Result(case, measurements, unavailable, ratios, read, bandwidth, errors)

"""Runs one case: prepares the contenders, times them, measures their memory and their error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flash_attn2.bench import accuracy, memory, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import (
    CONTENDERS,
    FLASH_ATTN2,
    STANDARD,
    Call,
    Problem,
    UnavailableError,
    score_bytes,
)
from flash_attn2.bench.modes import Mode, timed

_MATRICES_OF_BACKWARD = 4  # scores, probabilities, and the gradients of both


@dataclass(frozen=True)
class Measurement:
    """One contender in one case."""

    variant: str  # how it ran the case, where there are several ways
    samples: timing.Samples
    seconds: float  # median
    flops_per_second: float
    extra_bytes: int | None  # beyond the inputs; None: not measurable here
    error: float | None  # None: its random numbers are not known


@dataclass(frozen=True)
class Result:
    case: Case
    flops: float
    measurements: Mapping[str, Measurement]
    unavailable: Mapping[str, str]  # contender -> why it did not run
    ratios: Mapping[str, timing.Ratio]  # of the others' times over flash_attn2's
    errors: accuracy.Errors


@dataclass(frozen=True)
class Prepared:
    variant: str
    call: Call
    run: timing.Run
    estimate: float  # seconds


class Runner:
    """Measures cases on one device.

    `budget` bounds the time per case; standard attention is left out where its scores, and in a
    backward pass what it keeps and makes of their size, take more than `standard_limit` bytes.
    """

    def __init__(
        self,
        device: str,
        mode: Mode,
        budget: timing.Budget,
        standard_limit: float,
        num_threads: int,
    ) -> None:
        self.device = device
        self._mode = mode
        self._budget = budget
        self._standard_limit = standard_limit
        self._clock: timing.Clock = timing.CudaClock() if device == "cuda" else timing.CpuClock()
        self._peak_memory = (
            memory.PeakMemory(num_threads) if device == "cpu" and memory.supported() else None
        )

    def run(self, case: Case) -> Result:
        if self._mode.gradients:
            return self._run(case)
        with torch.inference_mode():
            return self._run(case)

    def _run(self, case: Case) -> Result:
        problem = Problem.create(case, self.device, gradients=self._mode.gradients)
        prepared: dict[str, Prepared] = {}
        unavailable: dict[str, str] = {}
        for name in CONTENDERS:
            try:
                prepared[name] = self._prepare(problem, name)
            except UnavailableError as reason:
                unavailable[name] = str(reason)
            except torch.cuda.OutOfMemoryError:
                if name == FLASH_ATTN2:
                    raise
                unavailable[name] = "out of memory"
        errors = self._errors(problem, {name: one.call for name, one in prepared.items()})
        flops = case.flops * self._mode.flops
        samples = timing.interleave(
            {name: one.run for name, one in prepared.items()},
            {name: one.estimate for name, one in prepared.items()},
            self._clock,
            self._budget,
        )
        measurements = {}
        for name, one in prepared.items():
            seconds = timing.median(samples[name])
            measurements[name] = Measurement(
                variant=one.variant,
                samples=samples[name],
                seconds=seconds,
                flops_per_second=flops / seconds,
                extra_bytes=self._extra_bytes(problem, name, one.variant),
                error=errors.largest(name),
            )
        ratios = {
            name: timing.compare(samples[FLASH_ATTN2], samples[name])
            for name in prepared
            if name != FLASH_ATTN2
        }
        return Result(case, flops, measurements, unavailable, ratios, errors)

    def _prepare(self, problem: Problem, contender: str) -> Prepared:
        """The fastest variant of a contender, warmed up."""
        best: Prepared | None = None
        size = score_bytes(problem.case) * (_MATRICES_OF_BACKWARD if self._mode.gradients else 1)
        if contender == STANDARD and size > self._standard_limit:
            raise UnavailableError(f"needs {size / 2**30:.1f} GiB")
        for variant, build in CONTENDERS[contender](problem).items():
            call = build()
            run = timed(self._mode, call, problem.grad_out)
            estimate = timing.estimate(run, self._clock)
            if best is None or estimate < best.estimate:
                best = Prepared(variant, call, run, estimate)
        assert best is not None
        return best

    def _errors(self, problem: Problem, calls: Mapping[str, Call]) -> accuracy.Errors:
        if self._mode.gradients:
            return accuracy.measure_gradients(problem, calls)
        outputs = {name: call.rows(call.run()) for name, call in calls.items()}
        return accuracy.measure(problem, outputs)

    def _extra_bytes(self, problem: Problem, contender: str, variant: str) -> int | None:
        if self.device == "cuda":
            return memory.cuda_peak(problem, contender, variant)
        if self._peak_memory is None:
            return None
        return self._peak_memory.measure(problem.case, contender, variant, self._mode)

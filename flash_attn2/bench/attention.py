"""Measures self-attention: prepares the contenders, times them, takes their memory and error."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from flash_attn2.bench import accuracy, memory, race, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import (
    CONTENDERS,
    STANDARD,
    Call,
    Problem,
    Variants,
    score_bytes,
)
from flash_attn2.bench.modes import Mode, timed
from flash_attn2.bench.suite import Outcome, Suite, UnavailableError

_MATRICES_OF_BACKWARD = 4  # scores, probabilities, and the gradients of both


class _Prepared(NamedTuple):
    variant: str  # how it runs the case, where there are several ways
    call: Call
    entry: race.Entry


class SelfAttention(Suite[Case]):
    """Every query of a sequence attends to keys of that sequence.

    `budget` bounds the time per case; standard attention is left out where its scores, and in a
    backward pass what it keeps and makes of their size, take more than `standard_limit` bytes.
    Memory is measured of `CONTENDERS` only.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        mode: Mode,
        device: str,
        budget: timing.Budget,
        standard_limit: float,
        contenders: Mapping[str, Callable[[Problem], Variants]] = CONTENDERS,
    ) -> None:
        self.cases = cases
        self._contenders = contenders
        self._mode, self._device, self._budget = mode, device, budget
        self._standard_limit = standard_limit
        self._clock = timing.clock(device)

    def describe(self, case: Case) -> Outcome:
        return {"case": dataclasses.asdict(case), "flops": self._mode.flops_of(case)}

    def measure(self, case: Case) -> Outcome:
        with contextlib.nullcontext() if self._mode.gradients else torch.inference_mode():
            return self._measure(case)

    def _measure(self, case: Case) -> Outcome:
        problem = Problem.create(case, self._device, gradients=self._mode.gradients)
        ready, unavailable = race.prepare(
            self._contenders, lambda name: self._prepare(problem, name)
        )
        errors = self._errors(problem, {name: one.call for name, one in ready.items()})
        entries = {name: one.entry for name, one in ready.items()}
        samples = race.run(entries, self._clock, self._budget)
        outcome = self.describe(case)
        contenders = race.blank(self._contenders, unavailable)
        for name, (variant, _, _) in ready.items():
            contenders[name] = {
                "variant": variant,
                **race.times(samples[name], "flops_per_second", outcome["flops"]),
                **self._memory(problem, name, variant),
                "error": errors.largest(name),
                **race.compare(samples, name),
            }
        return outcome | errors.record() | {"contenders": contenders}

    def _memory(self, problem: Problem, contender: str, variant: str) -> Outcome:
        if self._contenders is not CONTENDERS:
            return {}
        return {"extra_bytes": memory.peak(problem, contender, variant, self._mode)}

    def _prepare(self, problem: Problem, contender: str) -> _Prepared:
        """The fastest variant of a contender, warmed up."""
        size = score_bytes(problem.case) * (_MATRICES_OF_BACKWARD if self._mode.gradients else 1)
        if contender == STANDARD and size > self._standard_limit:
            raise UnavailableError(f"needs {size / 2**30:.1f} GiB")
        best: _Prepared | None = None
        for variant, build in self._contenders[contender](problem).items():
            call = build()
            entry = race.enter(timed(self._mode, call, problem.grad_out), self._clock)
            if best is None or entry.estimate < best.entry.estimate:
                best = _Prepared(variant, call, entry)
        assert best is not None
        return best

    def _errors(self, problem: Problem, calls: Mapping[str, Call]) -> accuracy.Errors:
        if self._mode.gradients:
            return accuracy.measure_gradients(problem, calls)
        return accuracy.measure(problem, {name: one.rows(one.run()) for name, one in calls.items()})

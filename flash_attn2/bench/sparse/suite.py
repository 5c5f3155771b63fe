"""Measures attention with block masks: contenders in turns, their error, the dense rate's share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch

from flash_attn2.bench import race, timing
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.sparse import accuracy
from flash_attn2.bench.sparse.cases import SparseCase
from flash_attn2.bench.sparse.contenders import (
    DENSE,
    FLEX_BLOCKS,
    SparseCall,
    SparseProblem,
    contenders,
)
from flash_attn2.bench.suite import Outcome, Suite


class _Prepared(NamedTuple):
    variant: str
    call: SparseCall
    entry: race.Entry


class SparseAttention(Suite[SparseCase]):
    """One sequence with a block mask; `budget` bounds the time per case, `mask_limit` the bytes of
    SDPA's dense mask. FlexAttention is compiled for blocks of each of `flex_blocks`."""

    def __init__(
        self,
        cases: Sequence[SparseCase],
        device: str,
        budget: timing.Budget,
        mask_limit: float,
        flex_blocks: Sequence[int] = FLEX_BLOCKS,
    ) -> None:
        self.cases = cases
        self._device, self._budget = device, budget
        self._contenders = contenders(mask_limit, flex_blocks)
        self._clock = timing.clock(device)

    def describe(self, case: SparseCase) -> Outcome:
        return {"case": dataclasses.asdict(case)}

    def measure(self, case: SparseCase) -> Outcome:
        with contextlib.nullcontext() if case.mode.gradients else torch.no_grad():
            return self._measure(case)

    def _measure(self, case: SparseCase) -> Outcome:
        problem = SparseProblem.create(case, self._device)
        names = self._contenders
        ready, unavailable = race.prepare(names, lambda name: self._prepare(problem, name))
        # Without a mask it is something else that is computed.
        errors = accuracy.measure(
            problem, {name: one.call for name, one in ready.items() if name != DENSE}
        )
        entries = {name: one.entry for name, one in ready.items()}
        samples = race.run(entries, self._clock, self._budget)
        results = race.blank(names, unavailable)
        for name, one in ready.items():
            work = case.dense_flops * (1 if name == DENSE else problem.mask.density)
            results[name] = {
                "variant": one.variant,
                **race.times(samples[name], "flops_per_second", work),
                "error": errors.largest(name),
                **race.compare(samples, name),
            }
        dense = results[DENSE]["seconds"]
        ours = results[FLASH_ATTN2]
        ours["share_of_dense"] = dense * problem.needed / ours["seconds"]
        shares = {"density": problem.mask.density, "needed": problem.needed}
        return self.describe(case) | shares | errors.record() | {"contenders": results}

    def _prepare(self, problem: SparseProblem, contender: str) -> _Prepared:
        """The fastest variant of a contender, warmed up."""
        best: _Prepared | None = None
        for variant, build in self._contenders[contender](problem).items():
            call = build()
            entry = race.enter(call.timed(problem.grad_out), self._clock)
            if best is None or entry.estimate < best.entry.estimate:
                best = _Prepared(variant, call, entry)
        assert best is not None
        return best

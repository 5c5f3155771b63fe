"""Measures decoding: the contenders in turns with reading memory, and their error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from flash_attn2.bench import race, timing
from flash_attn2.bench.decode import accuracy
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import (
    CONTENDERS,
    DecodeCall,
    DecodeProblem,
    read_memory,
)
from flash_attn2.bench.suite import Outcome, Suite

_READ = "reading memory"


class Decoding(Suite[DecodeCase]):
    """One new query per sequence, over a KV cache; `budget` bounds the time per case.

    `cold_bytes`: what all layers of a problem take; by default enough to leave the caches.
    """

    def __init__(
        self,
        cases: Sequence[DecodeCase],
        device: str,
        budget: timing.Budget,
        contenders: Mapping[str, Callable[[DecodeProblem], DecodeCall]] = CONTENDERS,
        cold_bytes: int | None = None,
    ) -> None:
        self.cases = cases
        self._contenders, self._cold_bytes = contenders, cold_bytes
        self._device, self._budget = device, budget
        self._clock = timing.clock(device)
        self._read, self._read_bytes = read_memory(device)

    def describe(self, case: DecodeCase) -> Outcome:
        return {"case": dataclasses.asdict(case), "kv_bytes": case.kv_bytes}

    @torch.inference_mode()
    def measure(self, case: DecodeCase) -> Outcome:
        problem = DecodeProblem.create(case, self._device, self._cold_bytes)
        names = self._contenders
        calls, unavailable = race.prepare(names, lambda name: names[name](problem))
        errors = accuracy.measure(
            problem, {name: one.result(problem) for name, one in calls.items()}
        )
        runs = {name: one.timed() for name, one in calls.items()} | {_READ: self._read}
        entries = {name: race.enter(run, self._clock) for name, run in runs.items()}
        samples = race.run(entries, self._clock, self._budget)
        # What the machine can do, measured between the contenders.
        read = race.times(samples.pop(_READ), "bytes_per_second", self._read_bytes)
        contenders = race.blank(names, unavailable)
        for name in calls:
            times = race.times(samples[name], "bytes_per_second", case.kv_bytes)
            contenders[name] = {
                **times,
                "error": errors.largest(name),
                **race.compare(samples, name),
                "share_of_memory": times["bytes_per_second"] / read["bytes_per_second"],
            }
        return self.describe(case) | {"read": read} | errors.record() | {"contenders": contenders}

"""Contenders of a case take turns, in every suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from flash_attn2.bench import timing
from flash_attn2.bench.suite import UnavailableError

FLASH_ATTN2 = "flash_attn2"

_Ready = TypeVar("_Ready")


class Entry(NamedTuple):
    """A contender that has warmed up."""

    run: Any  # as the clock takes it
    estimate: float  # seconds


def enter(run: Any, clock: timing.Clock) -> Entry:
    return Entry(run, timing.estimate(run, clock))


def prepare(
    names: Iterable[str], build: Callable[[str], _Ready]
) -> tuple[dict[str, _Ready], dict[str, str]]:
    """What `build` makes of each name, and why the others cannot run.

    flash_attn2 has to; whatever keeps a peer from running is the peer's result.
    """
    ready: dict[str, _Ready] = {}
    unavailable: dict[str, str] = {}
    for name in names:
        try:
            ready[name] = build(name)
        except Exception as error:
            if name == FLASH_ATTN2:
                raise
            unavailable[name] = _reason(error)
    return ready, unavailable


def _reason(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    text = str(error).partition("\n")[0][:200]
    return text if isinstance(error, UnavailableError) else f"{type(error).__name__}: {text}"


def run(
    entries: Mapping[str, Entry], clock: timing.Clock, budget: timing.Budget
) -> dict[str, timing.Samples]:
    return timing.interleave(
        {name: entry.run for name, entry in entries.items()},
        {name: entry.estimate for name, entry in entries.items()},
        clock,
        budget,
    )


def times(samples: timing.Samples, rate: str, work: float) -> dict[str, Any]:
    """What a record says of a contender: every sample by its round, the median, and work by it."""
    seconds = timing.median(samples)
    return {
        "samples": rounded(samples),
        "seconds": seconds,
        rate: work / seconds,
    }


def rounded(samples: timing.Samples) -> timing.Samples:
    """To nanoseconds, which keeps records small."""
    return {index: round(seconds, 9) for index, seconds in samples.items()}


def compare(samples: Mapping[str, timing.Samples], name: str) -> dict[str, Any]:
    """The ratio of a peer's times over flash_attn2's; nothing for flash_attn2 itself."""
    if name == FLASH_ATTN2:
        return {}
    return {"ratio": dataclasses.asdict(timing.compare(samples[FLASH_ATTN2], samples[name]))}


def blank(names: Iterable[str], unavailable: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a record says of contenders, in their order, before any is measured."""
    return {
        name: {"unavailable": unavailable[name]} if name in unavailable else {} for name in names
    }

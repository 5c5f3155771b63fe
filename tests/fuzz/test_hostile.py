"""Lengths, tables and positions that no check has seen, in every function of a native module.

The fuzzer's problems, between guard pages: nothing is read or written outside of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import support
import torch

import flash_attn2
from fuzz.call import build, described
from fuzz.hostile import make_hostile
from fuzz.problem import Problem, drawn, possible
from fuzz.worker import Worker

SEED = 23
COUNT = {"cpu": 60, "sm80-emulated": 5, "sm90-emulated": 5}
# What each function of the modules takes from host or device memory.
FUNCTIONS: dict[str, Callable[[Problem], bool]] = {
    "forward": lambda p: p.kind == "varlen" and p.path != "gradient",
    "backward": lambda p: p.kind == "varlen" and p.path == "gradient" and len(p.seqlens_q) > 0,
    "forward_over_pages": lambda p: p.kind == "paged",
    "forward_over_a_cache": lambda p: p.kind == "cache" and not p.cache.new,
    "forward_with_a_block_mask": lambda p: p.mask.heads != "" and p.path != "gradient",
    "backward_with_a_block_mask": lambda p: p.mask.heads != "" and p.path == "gradient",
    "append": lambda p: p.kind == "cache" and len(p.cache.new) > 0 and not p.cache.rotary,
    "append_with_rotation": lambda p: p.kind == "cache" and len(p.cache.rotary) > 0,
}


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, Worker]]:
    started = {backend: Worker(backend) for backend in COUNT}
    yield started
    for each in started.values():
        each.stop()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("backend", COUNT)
def test_no_value_leads_out_of_the_tensors(
    backend: str, function: str, workers: dict[str, Worker]
) -> None:
    support.require_backend(backend)
    problems = (drawn(SEED, number, backend) for number in range(100_000))
    taken = filter(FUNCTIONS[function], problems)
    for number in range(COUNT[backend]):
        problem = possible(replace(next(taken), hostile=number + 1))
        message = workers[backend].failure(problem)
        assert message == "", f"{message}\n{problem!r}"


def test_checks_stand_in_front() -> None:
    """But for `unchecked`, such values would be refused."""
    problem = Problem("varlen", "float32", (3, 4), (5, 6), (1, 1), 8)
    for seed in range(20):
        call = described(problem)
        arguments = build(call, behind=True)
        make_hostile(arguments, seed)
        pairs = zip(integers(arguments), integers(build(call, behind=True)), strict=True)
        if all(torch.equal(x, y) for x, y in pairs):
            continue
        with pytest.raises(ValueError, match="_seqlen"):
            flash_attn2.flash_attn_varlen_func(**arguments)


def integers(arguments: dict[str, Any]) -> list[torch.Tensor]:
    return [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.dtype == torch.int32]

"""The threads of a call, and calls from several Python threads at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from cases import FEATURES, PACKED_FEATURES, Case, Packed
from support import ONE_DTYPE, Target, run_varlen, targets
from torch import Tensor

from flash_attn2 import flash_attn_func


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_for_any_number_of_threads(attend: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The result, and the gradients."""
    leaves = [x.requires_grad_() for x in inputs]
    results = []
    for count in (1, 2, 7):
        with num_threads(count):
            torch.manual_seed(5)
            out = attend(*leaves)
            results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_dense_result_does_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    options = case.all_options("cpu") | {"deterministic": True}
    attend = functools.partial(flash_attn_func, **options)
    assert_same_for_any_number_of_threads(attend, *case.qkv(Target("cpu", dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PACKED_FEATURES.values(), ids=PACKED_FEATURES.keys())
def test_varlen_result_does_not_depend_on_threads(case: Packed, dtype: torch.dtype) -> None:
    options = case.all_options("cpu") | {"deterministic": True}
    attend = functools.partial(run_varlen, packing=case.packing("cpu"), **options)
    assert_same_for_any_number_of_threads(attend, *case.qkv(Target("cpu", dtype)))


@targets(ONE_DTYPE)
def test_concurrent_calls_do_not_disturb_each_other(target: Target) -> None:
    shapes = [(64, 113, 203), (128, 60, 90), (32, 1, 300), (96, 150, 20)]
    problems = [Case(d, 1, sq, sk).qkv(target) for d, sq, sk in shapes]

    def run(problem: tuple[Tensor, ...]) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in problem]
        out = flash_attn_func(*leaves, causal=True, deterministic=True)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    expected = [run(problem) for problem in problems]
    repeats = 1 if target.backend == "sm80-emulated" else 20
    with ThreadPoolExecutor(len(problems)) as pool:
        for _ in range(repeats):
            for results, right in zip(pool.map(run, problems), expected, strict=True):
                assert all(map(torch.equal, results, right))


def test_gil_is_released() -> None:
    """Python code runs while the kernel does."""
    q = torch.randn(1, 4096, 8, 64)
    running = threading.Event()
    done = threading.Event()

    def attend() -> None:
        running.set()
        flash_attn_func(q, q, q)
        done.set()

    thread = threading.Thread(target=attend)
    thread.start()
    running.wait()
    steps = 0
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 1000

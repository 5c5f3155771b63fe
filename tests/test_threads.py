"""The threads of a call, and calls from several Python threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from support import ONE_DTYPE, Case, Target, run_varlen, targets
from test_forward import FEATURES
from test_varlen import CASES, Packed
from torch import Tensor

from flash_attn2 import flash_attn_func


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def assert_same_for_any_number_of_threads(attend: Callable[[], Tensor]) -> None:
    results = []
    for count in (1, 2, 7):
        with num_threads(count):
            torch.manual_seed(5)
            results.append(attend())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


DTYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_dense_result_does_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
    q, k, v = case.qkv(Target("cpu", dtype))
    options = case.all_options("cpu")
    assert_same_for_any_number_of_threads(lambda: flash_attn_func(q, k, v, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_varlen_result_does_not_depend_on_threads(case: Packed, dtype: torch.dtype) -> None:
    q, k, v = case.qkv(Target("cpu", dtype))
    options = case.all_options("cpu")
    packing = case.packing("cpu")
    assert_same_for_any_number_of_threads(lambda: run_varlen(q, k, v, packing, **options))


@targets(ONE_DTYPE)
def test_concurrent_calls_do_not_disturb_each_other(target: Target) -> None:
    shapes = [(64, 113, 203), (128, 60, 90), (32, 1, 300), (96, 150, 20)]
    problems = [Case(d, 1, sq, sk).qkv(target) for d, sq, sk in shapes]
    expected = [flash_attn_func(*problem, causal=True) for problem in problems]
    repeats = 2 if target.backend == "sm80-emulated" else 20
    with ThreadPoolExecutor(len(problems)) as pool:
        for _ in range(repeats):
            results = pool.map(lambda problem: flash_attn_func(*problem, causal=True), problems)
            assert all(map(torch.equal, results, expected))


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

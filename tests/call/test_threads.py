"""The threads of a call, and calls from several Python threads at once."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cache_cases import CacheCase
from cases import FEATURES, PACKED_FEATURES, Case, Packed
from support import ONE_DTYPE, Target, cumulative, lengths, num_threads, run_varlen, targets
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 5])
def test_decoding_does_not_depend_on_threads(num_splits: int, dtype: torch.dtype) -> None:
    target = Target("cpu", dtype)
    q = target.tensor(3, 1, 8, 64)
    k, v = (target.tensor(3, 700, 2, 64) for _ in range(2))
    held = lengths(700, 0, 123)
    results = []
    for count in (1, 2, 7):
        with num_threads(count):
            out = flash_attn_with_kvcache(q, k, v, cache_seqlens=held, num_splits=num_splits)
            results.append(out)
    assert all(torch.equal(results[0], other) for other in results[1:])


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


def test_concurrent_decoding() -> None:
    """Each in a cache of its own, appending to it."""
    target = Target("cpu", torch.bfloat16)
    problems = [CacheCase(seqlen_q=n, page_size=16).arguments(target) for n in (1, 3, 1, 8)]

    def run(problem: dict[str, Any]) -> list[Tensor]:
        out = flash_attn_with_kvcache(**problem)
        return [out, problem["k_cache"].nan_to_num(), problem["v_cache"].nan_to_num()]

    expected = [run(problem) for problem in problems]
    with ThreadPoolExecutor(len(problems)) as pool:
        for _ in range(20):
            for results, right in zip(pool.map(run, problems), expected, strict=True):
                assert all(map(torch.equal, results, right))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_gil_is_released(direction: str) -> None:
    """Python code runs while the kernel does."""
    q = torch.randn(1, 4096, 8, 64, requires_grad=direction == "backward")
    out = flash_attn_func(q, q, q)
    running = threading.Event()
    done = threading.Event()

    def attend() -> None:
        running.set()
        if direction == "backward":
            out.sum().backward()
        else:
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


@targets([*ONE_DTYPE, Target("cpu", torch.float32)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sink", [False, True])
def test_thread_counts_that_change_within_a_call(
    sink: bool, packed: bool, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler or a finalizer may change them: memory is for the threads that run."""
    heads = 16
    leaves = [target.tensor(1, n, heads, 32).requires_grad_() for n in (40, 90, 90)]
    options = {"sink": torch.zeros(heads)} if sink else {}

    def results() -> list[Tensor]:
        if packed:
            cu_q, cu_k = cumulative(15, 25), cumulative(60, 30)
            inputs = [x[0] for x in leaves]
            out = flash_attn_varlen_func(*inputs, cu_q, cu_k, 25, 60, deterministic=True, **options)
        else:
            out = flash_attn_func(*leaves, deterministic=True, **options)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    expected = results()
    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: (1, 13)[next(asked) % 2])
        for _ in range(2):  # each call begins with either count
            assert all(map(torch.equal, results(), expected))
            next(asked)
    assert next(asked) > 2

    allocate = backends.Workspace.allocate
    for before, after in ((1, 13), (13, 1)):

        def change(workspace: backends.Workspace, size: int, count: int = after) -> int:
            torch.set_num_threads(count)
            return allocate(workspace, size)

        with num_threads(before), monkeypatch.context() as patch:
            patch.setattr(backends.Workspace, "allocate", change)
            assert all(map(torch.equal, results(), expected))


@targets([*ONE_DTYPE, Target("cpu", torch.float32)])
@pytest.mark.parametrize("address", [0, 8])
def test_no_kernel_runs_without_its_workspace(
    address: int, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = target.tensor(1, 40, 2, 32).requires_grad_()
    out = flash_attn_func(q, q, q, sink=torch.zeros(2))
    monkeypatch.setattr(backends.Workspace, "allocate", lambda *_: address)
    with pytest.raises(RuntimeError, match="allocate"):
        torch.autograd.grad(out.sum(), q)


@targets([*ONE_DTYPE, Target("cpu", torch.float32)])
def test_errors_of_the_allocation_are_raised(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise MemoryError("none left")

    q = target.tensor(1, 40, 2, 32).requires_grad_()
    out = flash_attn_func(q, q, q, sink=torch.zeros(2))
    monkeypatch.setattr(backends.Workspace, "allocate", fail)
    with pytest.raises(MemoryError, match="none left"):
        torch.autograd.grad(out.sum(), q)


@targets([Target("cpu", torch.float32)])
def test_calls_inside_of_an_allocation(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs there, and what it calls must not disturb the plan of the call that waits."""
    q = target.tensor(3, 40, 2, 32).requires_grad_()
    other = target.tensor(2, 700, 4, 16).requires_grad_()
    out = flash_attn_func(q, q, q, sink=torch.zeros(2))
    (expected,) = torch.autograd.grad(out.sum(), q, retain_graph=True)
    allocate = backends.Workspace.allocate
    inside = []

    def attend(workspace: backends.Workspace, size: int) -> int:
        monkeypatch.setattr(backends.Workspace, "allocate", allocate)
        with torch.enable_grad():
            result = flash_attn_func(other, other, other, sink=torch.zeros(4)).sum()
        inside.append(torch.autograd.grad(result, other))
        return allocate(workspace, size)

    monkeypatch.setattr(backends.Workspace, "allocate", attend)
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], expected)
    assert len(inside) == 1


COUNT_THREADS = """
import os, torch
from flash_attn2 import flash_attn_func, flash_attn_with_kvcache

def threads():
    return len(os.listdir("/proc/self/task"))

def attend():
    q = torch.randn(8, 300, 8, 64, requires_grad=True)
    torch.autograd.grad(flash_attn_func(q, q, q).sum(), q)
    with torch.no_grad():
        flash_attn_with_kvcache(q[:, :1], q, q)

torch.set_num_threads(1)
attend()
before = threads()
attend()
counts = [threads() - before]
torch.set_num_threads(4)
before = threads()  # torch 2.5 and earlier start some for other purposes
attend()
counts.append(threads() - before)
torch.randn(2000, 2000).exp()
counts.append(threads() - before)
print(counts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_are_as_many_as_torch_says_and_the_same() -> None:
    """One thread: none is started. Four: three more, which PyTorch's own kernels use as well."""
    result = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS], capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n")[-2] == "[0, 3, 3]"

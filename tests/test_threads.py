"""Calls from several Python threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from support import ONE_DTYPE, Case, Target, targets

from flash_attn2 import flash_attn_func


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

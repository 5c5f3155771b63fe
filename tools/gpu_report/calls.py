"""What one call costs the host: the time until a tiny problem is enqueued."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.modes import Mode
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome

_ROUNDS, _CALLS = 7, 100  # of so few calls that the device's queue does not fill
_EMULATED_ROUNDS, _EMULATED_CALLS = 1, 1


def measure(mode: Mode, device: str) -> Outcome:
    """Seconds per call of each contender, which take turns: forward, or both passes."""
    rows = _rows(device)
    on_gpu = device == "cuda"
    rounds = _ROUNDS if on_gpu else _EMULATED_ROUNDS
    calls = _CALLS if on_gpu else _EMULATED_CALLS
    runs: Mapping[str, Callable[[], Any]] = {
        FLASH_ATTN2: _run(mode, flash_attn2.flash_attn_func, rows),
        SDPA: _run(mode, scaled_dot_product_attention, rows.transpose(1, 2)),
    }
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            samples[name].append(_enqueue(run, device, calls))
    seconds = {name: statistics.median(times[1:]) for name, times in samples.items()}
    return {"case": {"name": f"calls/{mode.name}"}, "seconds": seconds}


def call(mode: Mode, device: str) -> None:
    """flash_attn2's, once."""
    _run(mode, flash_attn2.flash_attn_func, _rows(device))()


def _rows(device: str) -> Tensor:
    return torch.randn(1, 32, 1, 64, dtype=torch.float16, device=device)


def _run(mode: Mode, attend: Callable[..., Any], x: Tensor) -> Callable[[], Any]:
    if not mode.gradients:
        return functools.partial(attend, x, x, x)
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(attend(leaf, leaf, leaf), leaf, x)


def _enqueue(run: Callable[[], Any], device: str, calls: int) -> float:
    """Seconds per call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = (time.perf_counter() - start) / calls
    synchronize(device)
    return seconds


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()

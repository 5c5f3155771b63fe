"""Children that are forked after their parent has run parallel calls, as DataLoader's workers are.

docs/testing.md says what holds: a child with one thread works, as with torch itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
from support import CPU_FLOAT32, cpu_tensors_on
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache

SECONDS = 60.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def forward(q: Tensor) -> Tensor:
    return flash_attn_func(q, q, q, causal=True)


def backward(q: Tensor) -> Tensor:
    leaf = q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(forward(leaf).sum(), leaf)
    return grad


def append(q: Tensor) -> Tensor:
    cache = torch.zeros(2, *q.shape)
    flash_attn_with_kvcache(q, *cache, q, q, cache_seqlens=0)
    return cache


CALLS = {"forward": forward, "backward": backward, "append": append}


@pytest.fixture
def inputs() -> Tensor:
    """After a parallel call of the parent with them."""
    q = CPU_FLOAT32.tensor(2, 256, 4, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with cpu_tensors_on("cpu"):
        for call in CALLS.values():
            call(q)
    torch.set_num_threads(threads)
    return q


def succeeds_in_child(function: Callable[[], bool]) -> bool:
    """Whether a forked child returns True; one that hangs is killed."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.parametrize("name", CALLS)
def test_forked_child(name: str, inputs: Tensor) -> None:
    call = CALLS[name]
    with cpu_tensors_on("cpu"):
        expected = call(inputs)
        assert succeeds_in_child(lambda: torch.equal(call(inputs), expected))
        assert torch.equal(call(inputs), expected)  # the parent goes on


class Attended(Dataset[Tensor]):
    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return forward(self.inputs * (1 + index))


def test_data_loader(inputs: Tensor) -> None:
    data = Attended(inputs)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=2,
        timeout=SECONDS,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    with cpu_tensors_on("cpu"):
        results = list(loader)
        assert len(results) == len(data)
        for i, result in enumerate(results):
            assert torch.equal(result, data[i])

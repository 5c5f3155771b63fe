"""What a call asks of the CUDA runtime and of torch besides: by the emulator's runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from support import Target, targets

from flash_attn2 import flash_attn_func

EMULATED = [Target("sm80-emulated", torch.float16)]

# In a process of its own, where no kernel has been launched before.
PROGRAM = """
import json
import torch
from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache, masks
from flash_attn2._impl import backends

module = backends.load("sm80-emulated").module
module.set_options("races=off,poison=off,launches=off")
q, k, v = (torch.randn(1, 70, 2, 64, dtype=torch.float16, requires_grad=True) for _ in range(3))
rows = q.detach()[0]
ends = torch.tensor([0, 40, 70], dtype=torch.int32)
cache = [torch.randn(4, 16, 2, 64, dtype=torch.float16) for _ in range(2)]
table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
one = q.detach()[:, :2].reshape(2, 1, 2, 64)
mask = masks.longformer(window=8).build(70)
bias = torch.zeros(2, 70, 70, requires_grad=True)

def differentiated(**options):
    out = flash_attn_func(q, k, v, **options)
    torch.autograd.grad(out, (q, k, v), out.detach())

def biased():
    out = flash_attn_func(q, k, v, bias=bias)
    torch.autograd.grad(out, (q, bias), out.detach())

calls = {
    "plain": differentiated,
    "modified": lambda: differentiated(softcap=3.0),
    "dropout": lambda: differentiated(dropout_p=0.5),
    "ordered": lambda: differentiated(deterministic=True),
    "mask": lambda: differentiated(block_mask=mask),
    "bias": biased,
    "varlen": lambda: flash_attn_varlen_func(rows, rows, rows, ends, ends, 40, 40),
    "cache": lambda: flash_attn_with_kvcache(one, *cache, one, one, cache_seqlens=20,
                                             block_table=table),
}
counts = {}
for name, call in calls.items():
    module.take_runtime_calls()
    call()
    counts[name] = [module.take_runtime_calls()]
    call()
    counts[name].append(module.take_runtime_calls())
print(json.dumps(counts))
"""


def test_calls_of_the_runtime() -> None:
    support.require_backend("sm80-emulated")
    environment = {
        **os.environ,
        "FLASH_ATTN2_BACKEND": "sm80-emulated",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    counts = json.loads(done.stdout)
    for name, (first, second) in counts.items():
        assert second.keys() <= {"launch", "cudaGetDevice"}, (name, second)
        assert second["launch"] == first["launch"] > 0, name
        assert first.keys() <= {
            *("launch", "cudaGetDevice", "cudaFuncSetAttribute", "cudaDeviceGetAttribute")
        }, (name, first)
    # Once for each kernel that needs it; the device is asked by the first of all calls.
    assert counts["plain"][0]["cudaFuncSetAttribute"] == 1
    assert "cudaDeviceGetAttribute" in counts["plain"][0]
    assert "cudaDeviceGetAttribute" not in counts["modified"][0]


def allocations(events: Iterable[Any]) -> int:
    """Of at least a byte: an op has placeholders without any."""
    names = ("aten::empty", "aten::empty_strided")
    return sum(event.name in names and event.cpu_memory_usage > 0 for event in events)


@targets(EMULATED)
def test_launches_may_be_left_out(target: Target) -> None:
    q, k, v = (target.tensor(1, 33, 2, 64) for _ in range(3))
    with support.emulator_options("launches=off"):
        assert flash_attn_func(q, k, v).isnan().all()  # as results are poisoned
    assert not flash_attn_func(q, k, v).isnan().any()


@targets(EMULATED)
@pytest.mark.parametrize("gradients", [False, True])
def test_allocations_of_torch(target: Target, gradients: bool) -> None:
    """Results, and at most one workspace of each pass."""
    q, k, v = (target.tensor(1, 33, 2, 64).requires_grad_(gradients) for _ in range(3))
    incoming = target.tensor(1, 33, 2, 64)

    def call() -> None:
        out = flash_attn_func(q, k, v)
        if gradients:
            torch.autograd.grad(out, (q, k, v), incoming)

    with support.emulator_options("races=off,poison=off,launches=off"):
        call()
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            call()
    forward, backward = 2, 3 + 1  # at this size there are no splits, so no workspace forward
    assert allocations(profile.events()) == forward + gradients * backward

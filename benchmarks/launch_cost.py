"""What a call of the CUDA kernels costs the host, without a GPU.

    python benchmarks/launch_cost.py [--output FILE]

The product's own code runs with the kernel emulator's CUDA runtime, in which a launch is checked
and then does nothing (`launches=off`): Python, checks, plan, allocation of results and workspace,
and the host's part of each launch, but no driver. The processor's time is taken, and the least of
several rounds counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.bench.record import describe_machine
from flash_attn2.io.emulate import cpu_tensors_on, emulator_options

_ROUNDS, _CALLS = 15, 100


def calls() -> Mapping[str, Callable[[], Any]]:
    """Tiny problems, by name."""
    q = torch.randn(1, 64, 2, 64, dtype=torch.float16)
    leaf = q.clone().requires_grad_()
    rows, ends = q[0], torch.tensor([0, 30, 64], dtype=torch.int32)
    k_cache, v_cache = torch.randn(2, 4, 16, 2, 64, dtype=torch.float16)
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    lengths = torch.tensor([20, 31], dtype=torch.int32)
    one = torch.randn(2, 1, 2, 64, dtype=torch.float16)

    return {
        "forward": lambda: flash_attn_func(q, q, q, causal=True),
        "forward, packed": lambda: flash_attn_varlen_func(rows, rows, rows, ends, ends, 34, 34),
        "decoding step, with append": lambda: flash_attn_with_kvcache(
            one, k_cache, v_cache, one, one, cache_seqlens=lengths, block_table=table
        ),
        "forward and backward": lambda: torch.autograd.grad(
            flash_attn_func(leaf, leaf, leaf), leaf, q
        ),
    }


def fastest(found: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of the processor per call, the least of all rounds; calls take turns."""
    seconds = dict.fromkeys(found, float("inf"))
    for _ in range(_ROUNDS):
        for name, call in found.items():
            start = time.process_time()
            for _ in range(_CALLS):
                call()
            seconds[name] = min(seconds[name], (time.process_time() - start) / _CALLS)
    return seconds


def launches(module: Any, call: Callable[[], Any]) -> int:
    module.take_runtime_calls()
    call()
    return int(module.take_runtime_calls().get("launch", 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    module: Any = backends.load("sm80-emulated").module
    found = calls()
    with cpu_tensors_on("sm80-emulated"), emulator_options(module, "launches=off"):
        seconds = fastest(found)
        counts = {name: launches(module, call) for name, call in found.items()}
    print(f"{'call':<40} {'µs':>8} {'launches':>9}")
    for name in found:
        print(f"{name:<40} {seconds[name] * 1e6:8.1f} {counts[name]:9}")
    if given.output:
        record = {"machine": describe_machine("cpu"), "seconds": seconds, "launches": counts}
        given.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

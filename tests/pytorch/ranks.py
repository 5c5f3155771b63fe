"""Tests that run in several processes: each runs a function of this folder's modules, by gloo."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent


def run(count: int, module: str, function: str) -> None:
    """`module.function()` in so many processes; AssertionError with what they printed if any fails.

    They are forks of one that has imported everything, and done nothing else.
    """
    path = os.pathsep.join((str(HERE), *sys.path))
    environment = os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, module, function, str(count), str(Path(folder) / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=900,
        )
    assert done.returncode == 0, done.stdout


def _main() -> None:
    module, function, count, store = sys.argv[1:]
    checks = getattr(importlib.import_module(module), function)
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(checks, rank, int(count), store))
        for rank in range(int(count))
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


def _rank(checks: Callable[[], None], rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    checks()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main()

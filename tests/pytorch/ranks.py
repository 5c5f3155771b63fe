"""Tests that run in several processes: each runs a function of this folder's modules, by gloo."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent


def run(count: int, module: str, function: str) -> None:
    """`module.function()` in so many processes; AssertionError with what failed ones printed."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [module, function, str(count), str(Path(folder) / "store")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), *sys.path))}
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *arguments, str(rank)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for rank in range(count)
        ]
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    failed = [
        f"rank {rank}:\n{output}"
        for rank, (process, output) in enumerate(zip(processes, outputs, strict=True))
        if process.returncode != 0
    ]
    assert not failed, "\n".join(failed)


def _main() -> None:
    module, function, count, store, rank = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(count)
    )
    getattr(importlib.import_module(module), function)()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main()

"""What the training examples share: text, number formats, and the memory that a step takes."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import flash_attn2

_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_EXCLUDED |= {"encodings", "pydoc_data"}  # tables rather than programs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def standard_library() -> dict[str, bytes]:
    """The sources of Python's standard library by path, in a shuffled order that never changes."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*.py")
        if not _EXCLUDED.intersection(path.relative_to(root).parts)
    }
    names = sorted(paths, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {name: paths[name].read_bytes() for name in names}


def fastest_dtype(device: str) -> str:
    """bfloat16 where the hardware multiplies in it."""
    if device == "cuda":
        return "bfloat16"
    level: Any = flash_attn2.build_info()["cpu"]
    return "bfloat16" if level and level["isa"].endswith("bf16") else "float32"


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes that `step` has allocated through PyTorch at its peak, beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write to the terminal
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = allocated = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"

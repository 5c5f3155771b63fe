"""Peak extra memory: what a contender needs beyond its inputs (the output is included).

On CUDA this is PyTorch's own peak counter. On the CPU no single counter sees the tensors and the
workspaces of native code alike, and peak RSS is too coarse for small cases, so a fresh child
process tells glibc never to give memory back, runs the call once, and then counts the anonymous
pages that were touched (/proc/self/smaps_rollup, exact to a page). Prepared masks and padded
copies of the inputs count: they belong to the way in which a contender expresses the case.

Of a backward pass the forward pass is a part: it leaves what the backward pass needs.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import CONTENDERS, Problem
from flash_attn2.bench.modes import TRAINING, Mode, timed

_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
_PR_SET_THP_DISABLE = 41  # huge pages would round everything up to 2 MiB


def supported() -> bool:
    """Whether the CPU method works here (Linux with glibc)."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def peak(problem: Problem, contender: str, variant: str, mode: Mode) -> int | None:
    """Bytes on the problem's device, or None where they cannot be measured."""
    if problem.q.device.type == "cuda":
        return cuda_peak(problem, contender, variant)
    return cpu_peak(problem.case, contender, variant, mode) if supported() else None


def cpu_peak(case: Case, contender: str, variant: str, mode: Mode) -> int | None:
    """Bytes, or None if the child process did not survive (out of memory).

    It is forked from one that has loaded everything.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    job = (sender, torch.get_num_threads(), case, contender, variant, mode.gradients)
    child = context.Process(target=_measure_in_child, args=job)
    child.start()
    sender.close()
    try:
        size: int = receiver.recv()
    except EOFError:
        return None
    finally:
        child.join()
    return size


def cuda_peak(problem: Problem, contender: str, variant: str) -> int:
    """Bytes that a contender allocates through PyTorch, at the peak, beyond the inputs."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _run(problem, contender, variant)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _run(problem: Problem, contender: str, variant: str) -> Any:
    """All that must stay allocated until the peak is over."""
    call = CONTENDERS[contender](problem)[variant]()
    if problem.grad_out is None:
        return call, call.run()
    return call, timed(TRAINING, call, problem.grad_out)()


def _measure_in_child(
    sender: Connection,
    num_threads: int,
    case: Case,
    contender: str,
    variant: str,
    gradients: bool,
) -> None:
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    _warm_up(case.torch_dtype)
    problem = Problem.create(case, "cpu", random=False, gradients=gradients)
    sender.send(touched_memory(lambda: _run(problem, contender, variant)))


def _warm_up(dtype: torch.dtype) -> None:
    """Has PyTorch start its threads and load its libraries, which are nobody's extra memory."""
    matrix = torch.ones(512, 512, dtype=dtype, requires_grad=True)
    result = (matrix @ matrix).softmax(-1)
    torch.autograd.grad(result, matrix, torch.ones_like(result))


def keep_freed_memory() -> None:
    """Makes malloc take all memory from one heap and keep it when it is freed."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name, (option, value) in _MALLOPT.items():
        if libc.mallopt(option, value) != 1:
            raise OSError(f"mallopt({name}, {value}) failed")
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def touched_memory(run: Callable[[], Any]) -> int:
    """Bytes of anonymous memory that `run` touches; after `keep_freed_memory`, its peak."""
    ctypes.CDLL(None).malloc_trim(0)
    before = _anonymous_memory()
    result = run()
    after = _anonymous_memory()
    del result
    return max(after - before, 0)


def _anonymous_memory() -> int:
    with Path("/proc/self/smaps_rollup").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no line for anonymous memory")

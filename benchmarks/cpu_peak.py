"""What this machine can do at most, by C++ loops that are compiled when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from flash_attn2.bench import timing

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
FP32 = "multiply-adds of float32"
PAIRS = "vdpbf16ps"
_FUNCTIONS = {FP32: "fp32_flops", PAIRS: "bf16_flops"}
# Processors differ in what is faster for bf16: see is_slow_at_bf16 in csrc/cpu/isa.cpp.
_WAYS = {torch.float32: (FP32,), torch.bfloat16: (FP32, PAIRS)}


class Peak(NamedTuple):
    instructions: str
    run: Callable[[], int]  # keeps all of torch's threads busy; how many operations it did


def peak(dtype: torch.dtype) -> Peak:
    """The fastest instructions of this machine that multiply values of `dtype`."""
    rates = {}
    for way in _WAYS[dtype]:
        if operations := loop(way)():
            rates[way] = operations / timing.estimate(loop(way), timing.CpuClock())
    best = max(rates, key=lambda way: rates[way])
    return Peak(best, loop(best))


def loop(instructions: str) -> Callable[[], int]:
    """A call that does nothing else; its result is 0 where the processor has no such instructions.

    Loaded after torch, the library shares its OpenMP runtime.
    """
    function = getattr(_library(), _FUNCTIONS[instructions])
    function.restype = ctypes.c_int64
    return lambda: function(torch.get_num_threads())


def reading(num_bytes: int) -> Callable[[], float]:
    """A call that reads memory with all of torch's threads; its result is the number of floats.

    Of `num_bytes`, that is all but 256 for each thread at most.
    """
    memory = torch.ones(num_bytes // 4)
    function = _library().read_memory
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    function.restype = ctypes.c_double
    return lambda: function(memory.data_ptr(), num_bytes, torch.get_num_threads())


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "cpu_peak.so"
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as error:
            raise RuntimeError(f"no C++ compiler {compiler!r} (set CXX): {error}") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{' '.join(command)}: {error.stderr}") from error
        return ctypes.CDLL(str(library))

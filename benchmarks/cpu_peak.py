"""The arithmetic peak of this machine, by a C++ loop that is compiled when it is first needed."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_FUNCTIONS = {torch.float32: "fp32_flops", torch.bfloat16: "bf16_flops"}


def peak(dtype: torch.dtype) -> Callable[[], int]:
    """A call that keeps all of torch's threads busy and returns how many operations it did.

    Loaded after torch, the library shares its OpenMP runtime.
    """
    function = getattr(_library(), _FUNCTIONS[dtype])
    function.restype = ctypes.c_int64
    if function(1) == 0:
        raise RuntimeError(f"no instructions for products of {dtype} here")
    return lambda: function(torch.get_num_threads())


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

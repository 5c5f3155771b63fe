"""Which native module serves a tensor.

Each backend is one pybind11 module with the same functions (see csrc/bindings). They are
imported on first use: importing the package loads no native code and needs no CUDA driver.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from flash_attn2._impl import env

MODULES = {
    "cpu": "_cpu",
    "cuda": "_cuda",
    "sm80-emulated": "_sm80_emulated",
    "sm90-emulated": "_sm90_emulated",
}
_IN_THE_EMULATOR = "`make test` builds it in a source checkout; wheels do not contain it"

_HOW_TO_BUILD = {
    "cpu": "reinstall flash_attn2 with a C++ compiler present",
    "cuda": "reinstall flash_attn2 with FLASH_ATTN2_CUDA=on on a machine that has nvcc",
    "sm80-emulated": _IN_THE_EMULATOR,
    "sm90-emulated": _IN_THE_EMULATOR,
}


@dataclass(frozen=True)
class Backend:
    """A native module and what its tensors must look like."""

    name: str
    module: ModuleType
    dtype_names: dict[torch.dtype, str]
    aligned: bool  # head_dim a multiple of 8 and rows on 16-byte boundaries
    forward_direct: Callable[..., bool] | None  # see `launch`
    backward_direct: Callable[..., bool] | None

    def dtype_name(self, dtype: torch.dtype) -> str:
        """What the module calls `dtype`. TypeError when it does not compute in it."""
        if (name := self.dtype_names.get(dtype)) is None:
            allowed = " or ".join(self.dtype_names.values())
            raise TypeError(f"q must be {allowed} on the {self.name} backend, got {dtype}")
        return name

    def run(
        self, entry_point: Callable[..., None], problem: dict[str, Any], device: torch.device
    ) -> None:
        """`module.forward` or `module.backward` of a problem (`lower`) on `device`."""
        workspace = Workspace()
        workspace.device = device
        if self.name == "cuda":
            with torch.cuda.device(device):
                entry_point(problem, torch.cuda.current_stream().cuda_stream, workspace.allocate)
        else:
            entry_point(problem, torch.get_num_threads(), workspace.allocate)


_ALIGNMENT = 256


class Workspace:
    """Memory that a native call asks for, if it needs any; held as long as this is."""

    __slots__ = ("_memory", "device")

    device: torch.device

    def allocate(self, num_bytes: int) -> int:
        """The address of so many bytes, aligned."""
        size = num_bytes + _ALIGNMENT
        self._memory = allocated(size, dtype=torch.uint8, device=self.device)
        address = self._memory.data_ptr()
        return address + -address % _ALIGNMENT


# Through this name, tests poison the workspace.
allocated = torch.empty


class NotBuiltError(RuntimeError):
    """A native module is not there, or cannot be loaded."""


@functools.cache
def load(name: str) -> Backend:
    """The backend called `name` (a key of `MODULES`).

    NotBuiltError where it was not built, ValueError where an environment variable is wrong.
    """
    env.backend()
    try:
        module = importlib.import_module(f"flash_attn2.{MODULES[name]}")
    except ImportError as error:
        raise NotBuiltError(
            f"flash_attn2 has no {name} kernels here ({error}): {_HOW_TO_BUILD[name]}"
        ) from error
    dtype_names = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    if name == "cpu":
        dtype_names |= {torch.float32: "float32", torch.float64: "float64"}
        if (isa := env.cpu_isa(module.build_info()["isa_levels"])) is not None:
            module.set_isa(isa)
        if (l2_kib := env.cpu_l2_kib()) is not None:
            module.set_processor(l2_kib << 10, wide_l2=False)
    elif name == "cuda":
        module.choose_family(env.cuda_family())
    elif name == "sm90-emulated":
        module.choose_family("sm90")
    return Backend(
        name,
        module,
        dtype_names,
        aligned=name != "cpu",
        forward_direct=_direct(module, "forward_direct"),
        backward_direct=_direct(module, "backward_direct"),
    )


def _direct(module: ModuleType, name: str) -> Callable[..., bool] | None:
    # Through which native code looks at tensors of any torch from 2.10 on.
    exchange_api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    function = getattr(module, name, None)
    if exchange_api is None or function is None:
        return None
    return functools.partial(function, exchange_api)


for_cpu_tensors: Backend | None = None


def select(name: str) -> None:
    """Send CPU tensors to this backend: one of `env.BACKENDS`."""
    global for_cpu_tensors
    for_cpu_tensors = load("cpu" if name == "auto" else name)


def serving(tensor: torch.Tensor) -> Backend:
    """The backend that computes where `tensor` lives."""
    if tensor.is_cpu:
        if for_cpu_tensors is None:
            select(env.backend())
            return serving(tensor)
        return for_cpu_tensors
    if tensor.is_cuda:
        return load("cuda")
    raise ValueError(f"q is on device {tensor.device}; flash_attn2 computes on cpu and cuda")

"""Environment variables. No other module of the package reads them.

| variable | values, default first | meaning |
|---|---|---|
| `FLASH_ATTN2_BACKEND` | `auto`, `cpu`, `sm80-emulated` | What computes CPU tensors: the native CPU family (`auto`, `cpu`), or the sm80 CUDA kernels under the emulator, which only a development build has. CUDA tensors always take the CUDA kernels. |
| `FLASH_ATTN2_CPU_ISA` | `auto` or a level that `build_info()["cpu"]` lists | Instruction set of the CPU family; `auto` is the best that the processor has. |

Variables of the build are described in the README.
"""  # noqa: E501

from __future__ import annotations

import os

BACKENDS = ("auto", "cpu", "sm80-emulated")


def backend() -> str:
    """What computes CPU tensors: one of `BACKENDS`. Raises ValueError for anything else."""
    name = os.environ.get("FLASH_ATTN2_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"FLASH_ATTN2_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def cpu_isa() -> str:
    """Name of an instruction-set level, or `auto`; the CPU module knows which exist."""
    return os.environ.get("FLASH_ATTN2_CPU_ISA", "auto")

"""Environment variables. No other module of the package reads them. Empty ones count as unset.

| variable | values, default first | meaning |
|---|---|---|
| `FLASH_ATTN2_BACKEND` | `auto`, `cpu`, `sm80-emulated`, `sm90-emulated` | What computes CPU tensors: the native CPU family (`auto`, `cpu`), or CUDA kernels under the emulator, which only a development build has: the sm80 family, or both as with `FLASH_ATTN2_CUDA_FAMILY=sm90`. CUDA tensors always take the CUDA kernels. |
| `FLASH_ATTN2_CPU_ISA` | `auto` or a level that `build_info()["cpu"]` lists | Instruction set of the CPU family; `auto` is the best that the processor has. |
| `FLASH_ATTN2_CPU_L2_KIB` | `auto` or a number from 64 to 65536 | Second-level cache that sizes of chunks on the CPU follow; `auto` is the processor's own. Without `deterministic`, the last bits of dK and dV depend on it. |
| `FLASH_ATTN2_CUDA_FAMILY` | `auto`, `sm80`, `sm90` | Which CUDA kernels run: those for 8.0 and later (`auto`, `sm80`), or on compute capability 9.0 its own wherever there are any (`sm90`), which have run in the emulator only; elsewhere that is an error. |
| `FLASH_ATTN2_DISTRIBUTED_CHECK` | `first`, `always`, `off` | When ranks compare their plans and arguments before they attend together: at the first call with new ones, at every call, or never. |

Those of the build stand in docs/reference/environment.md.
"""  # noqa: E501

from __future__ import annotations

import os
from collections.abc import Sequence

BACKENDS = ("auto", "cpu", "sm80-emulated", "sm90-emulated")
CUDA_FAMILIES = ("auto", "sm80", "sm90")
DISTRIBUTED_CHECKS = ("first", "always", "off")


def backend() -> str:
    """What computes CPU tensors: one of `BACKENDS`. Raises ValueError for anything else."""
    name = os.environ.get("FLASH_ATTN2_BACKEND") or "auto"
    if name not in BACKENDS:
        raise ValueError(f"FLASH_ATTN2_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def cpu_isa(levels: Sequence[str]) -> str | None:
    """One of the instruction-set levels that the CPU module offers here, or None for the best.

    Raises ValueError for anything else.
    """
    name = os.environ.get("FLASH_ATTN2_CPU_ISA") or "auto"
    if name == "auto":
        return None
    if name not in levels:
        raise ValueError(
            f"FLASH_ATTN2_CPU_ISA must be auto or a level that this processor has, "
            f"{', '.join(levels)}, got {name!r}"
        )
    return name


def cpu_l2_kib() -> int | None:
    """Second-level cache for which sizes of chunks are chosen, or None for that of the processor.

    Raises ValueError for what is no number from 64 to 65536.
    """
    text = os.environ.get("FLASH_ATTN2_CPU_L2_KIB") or "auto"
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 64 <= int(text) <= 65536:
        raise ValueError(
            f"FLASH_ATTN2_CPU_L2_KIB must be auto or a number from 64 to 65536, got {text!r}"
        )
    return int(text)


def cuda_family() -> str:
    """Which CUDA kernels run: one of `CUDA_FAMILIES`. Raises ValueError for anything else."""
    name = os.environ.get("FLASH_ATTN2_CUDA_FAMILY") or "auto"
    if name not in CUDA_FAMILIES:
        raise ValueError(
            f"FLASH_ATTN2_CUDA_FAMILY must be one of {', '.join(CUDA_FAMILIES)}, got {name!r}"
        )
    return name


def distributed_check() -> str:
    """When ranks compare plans and arguments: one of `DISTRIBUTED_CHECKS`. Raises ValueError for
    anything else."""
    name = os.environ.get("FLASH_ATTN2_DISTRIBUTED_CHECK") or "first"
    if name not in DISTRIBUTED_CHECKS:
        raise ValueError(
            "FLASH_ATTN2_DISTRIBUTED_CHECK must be one of "
            f"{', '.join(DISTRIBUTED_CHECKS)}, got {name!r}"
        )
    return name

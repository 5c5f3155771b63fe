"""`activate` and `deactivate`: which kernels PyTorch's dispatcher finds."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch.nn import attention

from flash_attn2._impl import backends
from flash_attn2.integrations.sdpa import cpu, cuda

NAME = "flash_attn2"
OVERRIDES = {"cpu": cpu.OVERRIDES, "cuda": cuda.OVERRIDES}
NEEDED = "register_flash_attention_impl", "restore_flash_attention_impl"


def activate(*devices: str) -> None:
    """Lets torch.nn.functional.scaled_dot_product_attention run on the kernels of this package.

    Where PyTorch would take its own flash kernels, these are taken instead, forward and backward,
    under the name "flash_attn2" of PyTorch's registry of such kernels. `devices` are "cpu" and
    "cuda"; none of them means "cpu", and "cuda" where there is a GPU. What PyTorch chooses flash
    kernels for stays its own choice (`torch.nn.attention.sdpa_kernel`), and what these kernels do
    not take goes on to PyTorch's: on the CPU masks, causal masks where queries and keys are not as
    many, and float64; on CUDA dropout, such causal masks, and what only PyTorch's have.

    A backward pass may follow after `deactivate`, or the other way round. Calling it once more
    changes devices. RuntimeError with a PyTorch that has no such registry (2.13 has it),
    ValueError for other devices, `NotBuiltError` where this package has no kernels for one.
    """
    registry = _registry()
    if not devices:
        devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        if device not in OVERRIDES:
            raise ValueError(f"devices must be 'cpu' or 'cuda', got {device!r}")
        backends.load(device)
    registry.register_flash_attention_impl(NAME, register_fn=partial(_install, devices))
    registry.activate_flash_attention_impl(NAME)


def deactivate() -> None:
    """Undoes `activate`: PyTorch's own kernels are found again. Does nothing where those of this
    package are not active."""
    if all(hasattr(attention, name) for name in NEEDED):
        registry = _registry()
        if registry.current_flash_attention_impl() == NAME:
            registry.restore_flash_attention_impl()


def _registry() -> Any:
    if not all(hasattr(attention, name) for name in NEEDED):
        raise RuntimeError(
            "flash_attn2.integrations.sdpa.activate needs torch.nn.attention."
            f"register_flash_attention_impl, which PyTorch {torch.__version__} does not have, and "
            "2.13 does: call flash_attn2.integrations.sdpa.scaled_dot_product_attention by name"
        )
    return attention


class _Handle:
    """What the registry holds while the kernels are active."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def remove(self) -> None:
        self._library._destroy()


def _install(devices: tuple[str, ...]) -> _Handle:
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for device in devices:
        key = device.upper()
        for name, override in OVERRIDES[device].items():
            old = torch.library.get_kernel(f"aten::{name}", key).call_boxed
            with warnings.catch_warnings():
                # That a kernel is replaced is what was asked for.
                warnings.filterwarnings("ignore", "(?s).*registered kernel for the same operator")
                library.impl(name, partial(override, old), key, with_keyset=True)
    return _Handle(library)

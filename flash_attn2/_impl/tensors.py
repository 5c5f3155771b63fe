"""What a tensor must be for a kernel to read it, whatever it stands for: strided, and in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

# Tensors without memory have their offset for an address, which is never so large; the address of
# a real one may be smaller, but hardly ever is. Likewise in csrc/bindings/dlpack.h.
SURELY_MEMORY = 2**40


def require_strided(name: str, tensor: Tensor) -> None:
    """TypeError for nested, sparse and other tensors that are not simply strides over memory."""
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pack its rows, and use "
            "flash_attn_varlen_func"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor, got layout {tensor.layout}: use to_dense()"
        )


def has_memory(tensor: Tensor) -> bool:
    """Whether there is memory for its elements, if it has any. RuntimeError without a storage."""
    return (
        tensor.data_ptr() >= SURELY_MEMORY
        or tensor.numel() == 0
        or tensor.untyped_storage().data_ptr() != 0
    )


def require_memory(name: str, tensor: Tensor) -> None:
    """ValueError for elements without memory: of a storage that was freed, for instance."""
    if not has_memory(tensor):
        raise ValueError(
            f"{name} must be in memory, got shape {tuple(tensor.shape)} without any: its storage "
            f"has {tensor.untyped_storage().nbytes()} bytes"
        )


def require_allocated(**tensors: Tensor | None) -> None:
    """ValueError where a storage was freed: PyTorch reads some of those all the same.

    Other tensors without memory are left to it: zero, functional, batched and fake ones.
    """
    if is_compiling():
        return
    for name, tensor in tensors.items():
        if type(tensor) is Tensor or type(tensor) is Parameter:
            _require_allocated(name, tensor)


def in_memory(name: str, tensor: Tensor) -> Tensor:
    """Zeros in memory for a zero tensor, else itself, for the host to read. ValueError if freed."""
    if type(tensor) is not Tensor or _require_allocated(name, tensor):
        return tensor
    if tensor._is_zerotensor():
        return torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    return tensor


def _require_allocated(name: str, tensor: Tensor) -> bool:
    """Whether it surely is in memory; ValueError if that was freed."""
    try:
        if tensor.data_ptr() >= SURELY_MEMORY:
            return True
        if not (tensor.is_meta or tensor._is_zerotensor() or torch._is_functional_tensor(tensor)):
            require_memory(name, tensor)
    except RuntimeError:  # no storage
        pass
    return False


def require_readable(names: Iterable[str], values: Iterable[Any]) -> None:
    """Both, of those values that are tensors. For kernels, after the dispatcher."""
    for name, value in zip(names, values, strict=False):
        if isinstance(value, Tensor):
            require_strided(name, value)
            require_memory(name, value)


def address(tensor: Tensor) -> int:
    """Where the first element lies. All pointers of `launch` are taken here.

    Callers have checked that there is memory, by name; this is for those who have not.
    """
    pointer = tensor.data_ptr()
    if pointer < SURELY_MEMORY:
        require_memory("a tensor", tensor)
    return pointer

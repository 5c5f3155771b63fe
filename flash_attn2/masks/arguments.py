"""Arguments that several patterns take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int, require_tensor, require_values
from flash_attn2._impl.problem import BLOCK, MAX_SEQLEN

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def integers(name: str, tensor: Any) -> Tensor:
    """The values of an integer tensor, as int64 on the CPU."""
    require_tensor(name, tensor)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be of integers, got {tensor.dtype}")
    return require_values(name, tensor).to("cpu", torch.int64)


def truths(name: str, tensor: Any) -> Tensor:
    """A bool tensor that has values."""
    require_tensor(name, tensor)
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} must be torch.bool, got {tensor.dtype}")
    return require_values(name, tensor)


def checked_block(name: str, value: Any) -> int:
    """A block size of a pattern."""
    block = as_int(name, value)
    if block % BLOCK or not BLOCK <= block <= MAX_SEQLEN:
        raise ValueError(f"{name} must be a multiple of {BLOCK}, got {block}")
    return block

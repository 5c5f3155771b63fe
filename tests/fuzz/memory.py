"""Tensors whose memory ends, or begins, at a page that must not be touched."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flash_attn2._impl import backends, launch

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(count: int, dtype: torch.dtype, behind: bool) -> Tensor:
    """Vector of `count` elements right in front of a guard page, or right behind one.

    A guard page lies on the other side too, with the rest of a page in between. The memory holds
    NaN, or integers that are no length.
    """
    if count == 0:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    inner = -(-size // _PAGE) * _PAGE
    memory = mmap.mmap(-1, inner + 2 * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + _PAGE + inner):
        if _libc.mprotect(guard, _PAGE, 0) != 0:  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
    begin = _PAGE + (inner - size if behind else 0)
    return poison(torch.frombuffer(memory, dtype=dtype, count=count, offset=begin))


def poison(tensor: Tensor) -> Tensor:
    """NaN everywhere, or all bits set."""
    if tensor.is_floating_point():
        return tensor.fill_(torch.nan)
    return tensor.fill_(0xFF if tensor.dtype == torch.uint8 else -1)


def guarded_copy(tensor: Tensor, behind: bool) -> Tensor:
    """A contiguous copy in guarded memory."""
    return guarded(tensor.numel(), tensor.dtype, behind).view(tensor.shape).copy_(tensor)


@contextmanager
def guarded_results(behind: bool) -> Iterator[None]:
    """Results and workspaces of kernels come poisoned, from guarded memory."""

    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        shape: Sequence[int] = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        if device is not None and torch.device(device).type != "cpu":
            return poison(torch.empty(shape, dtype=dtype, device=device))
        count = math.prod(shape)
        return guarded(count, dtype or torch.get_default_dtype(), behind).view(*shape)

    def empty_like(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        if type(x) is not Tensor or not x.is_cpu or torch.compiler.is_compiling():
            return poison(torch.empty_like(x, memory_format=memory_format))
        return empty(*x.shape, dtype=x.dtype)

    with (
        mock.patch.multiple(launch, empty=empty, empty_like=empty_like),
        mock.patch.object(backends, "allocated", empty),
    ):
        yield

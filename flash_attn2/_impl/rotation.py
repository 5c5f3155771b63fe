"""Rotary position embedding of tensors: which position a row has, and how a head turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int, require_tensor
from flash_attn2._impl.checks import FLOAT_DTYPES, host_lengths
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.tensors import in_memory, require_allocated

_INTEGERS = (torch.int32, torch.int64)


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (..., head_dim), whose pairs turn; cos and sin are (..., pairs) and broadcast.

    Each product and each sum is rounded to float32, or to float64 if there is one among them.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    cos, sin, dim = cos.to(dtype), sin.to(dtype), 2 * cos.shape[-1]
    rotated, rest = x[..., :dim].to(dtype), x[..., dim:]
    if interleaved:
        a, b = rotated[..., ::2], rotated[..., 1::2]
        rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    else:
        a, b = rotated.chunk(2, -1)
        rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    rotated = rotated.to(x.dtype)
    return torch.cat((rotated, rest), -1) if rest.shape[-1] else rotated


def check_rows(x: Tensor, cu_seqlens: Tensor | None, joint: bool = False) -> None:
    """That x is dense, or packed with cu_seqlens; with `joint`, perhaps q, k and v in one."""
    require_tensor("x", x)
    ndim = 4 if cu_seqlens is None else 3
    if x.ndim != ndim and not (joint and x.ndim == ndim + 1 and x.shape[-3] == 3):
        raise ValueError(
            "x must be (batch, seqlen, num_heads, head_dim), or (total, num_heads, head_dim) "
            f"with cu_seqlens, got shape {tuple(x.shape)}"
        )
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    require_allocated(x=x)
    if cu_seqlens is not None:
        check_sequences(cu_seqlens, x)


def checked_offsets(name: str, offsets: Any, x: Tensor, cu_seqlens: Tensor | None) -> int | Tensor:
    """Where sequences begin: a number, or integers (batch,) on the device of x."""
    if isinstance(offsets, Tensor) and offsets.ndim != 0:
        require_tensor(name, offsets)
        batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if offsets.dtype not in _INTEGERS:
            raise TypeError(f"{name} must be int32 or int64, got {offsets.dtype}")
        if offsets.shape != (batch,):
            raise ValueError(f"{name} must have shape ({batch},), got {tuple(offsets.shape)}")
        if offsets.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {offsets.device}")
        if offsets.is_cpu and ordinary() and is_ordinary(offsets) and batch > 0:
            _require_not_negative(name, int(in_memory(name, offsets).min()))
        return offsets
    offset = as_int(name, offsets)
    _require_not_negative(name, offset)
    return offset


def _require_not_negative(name: str, offset: int) -> None:
    if offset < 0:
        raise ValueError(f"{name} must not be negative, got {offset}")


def positions_of(x: Tensor, offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Of the rows of x: (rows,), (batch, rows) or, packed, (total,)."""
    rows = x.shape[0] if cu_seqlens is not None else x.shape[1]
    row = torch.arange(rows, device=x.device)
    if cu_seqlens is None:
        return row + (offsets[:, None] if isinstance(offsets, Tensor) else offsets)
    if cu_seqlens.shape[0] == 1:  # no sequence
        return row
    sequence = torch.searchsorted(cu_seqlens, row.int(), right=True) - 1
    sequence = sequence.clamp(max=cu_seqlens.shape[0] - 2)  # rows of no sequence: any
    first = offsets[sequence] if isinstance(offsets, Tensor) else offsets
    return row - cu_seqlens[sequence] + first


def check_sequences(cu_seqlens: Tensor, x: Tensor) -> None:
    """That these are offsets of sequences in the rows of packed x."""
    require_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (batch + 1,), got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != x.device:
        raise ValueError(
            f"cu_seqlens must be on the device of x, {x.device}, got {cu_seqlens.device}"
        )
    if cu_seqlens.is_cpu and ordinary() and is_ordinary(cu_seqlens):
        cu_seqlens = in_memory("cu_seqlens", cu_seqlens)
        host_lengths("cu_seqlens", cu_seqlens, x.shape[0])

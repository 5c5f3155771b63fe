"""`bias` and `relative_bias` of a call: whether they fit the tensors, and as kernels take them.

Neither is ever copied or expanded: kernels read them where they lie, by strides that are 0 along
what one entry is for all of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import Problem
from flash_attn2._impl.tensors import address

_DIMS = "(batch, num_heads, seqlen_q, seqlen_k)"


def check_biases(p: Problem) -> None:
    """Of dense tensors whose shapes have been checked."""
    _, _, bias, relative_bias = p.options.score_mod
    if bias is not None:
        _check_bias(bias, p)
    if relative_bias is not None:
        _check_relative_bias(relative_bias, p)


def _check_bias(bias: Tensor, p: Problem) -> None:
    assert p.k is not None
    batch, seqlen_q, num_heads, _ = p.q.shape
    full = batch, num_heads, seqlen_q, p.k.shape[1]
    if bias.dtype != p.q.dtype and bias.dtype != torch.float32:
        allowed = "float32" if p.q.dtype == torch.float32 else f"float32, or {p.q.dtype} as q is"
        raise TypeError(f"bias must be {allowed}, got {bias.dtype}")
    shape = bias.shape
    fits = 1 <= len(shape) <= 4 and all(
        size in (1, whole) for size, whole in zip(shape, full[4 - len(shape) :], strict=True)
    )
    if not fits:
        raise ValueError(
            f"bias must have 1 to 4 dimensions that broadcast to {_DIMS}, {full}, got shape "
            f"{tuple(shape)}"
        )
    _check_device("bias", bias, p)


def _check_relative_bias(bias: Tensor, p: Problem) -> None:
    assert p.k is not None
    _, seqlen_q, num_heads, _ = p.q.shape
    if bias.dtype != torch.float32 and not bias.dtype == p.q.dtype == torch.float64:
        raise TypeError(
            f"relative_bias must be float32, or float64 as q is, got {bias.dtype} with q in "
            f"{p.q.dtype}"
        )
    count = num_diagonals(seqlen_q, p.k.shape[1])
    if bias.ndim != 2 or bias.shape[0] not in (1, num_heads) or bias.shape[1] != count:
        raise ValueError(
            f"relative_bias must be (num_heads or 1, seqlen_q + seqlen_k - 1), ({num_heads} or 1, "
            f"{count}), got shape {tuple(bias.shape)}"
        )
    _check_device("relative_bias", bias, p)


def _check_device(name: str, bias: Tensor, p: Problem) -> None:
    if bias.device != p.q.device:
        raise ValueError(f"{name} must be on the device of q, {p.q.device}, got {bias.device}")


def num_diagonals(seqlen_q: int, seqlen_k: int) -> int:
    """Of scores: so many values has key - query."""
    return seqlen_q + seqlen_k - 1 if seqlen_q and seqlen_k else 0


# As csrc/core/params.h has them.

_DTYPE_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def lower_bias(bias: Tensor) -> dict[str, Any]:
    """A Bias of what broadcasts."""
    missing = 4 - bias.ndim
    strides = [0] * missing + [
        0 if size == 1 else stride for size, stride in zip(bias.shape, bias.stride(), strict=True)
    ]
    return _fields(bias, 0, *strides)


def lower_relative_bias(bias: Tensor, seqlen_q: int) -> dict[str, Any]:
    """A Bias of diagonals: the entry of (row, col) is that of col - row, seqlen_q - 1 before."""
    head_stride, stride = bias.stride()
    if bias.shape[0] == 1:
        head_stride = 0
    return _fields(bias, (seqlen_q - 1) * stride, 0, head_stride, -stride, stride)


def _fields(bias: Tensor, first: int, *strides: int) -> dict[str, Any]:
    batch_stride, head_stride, row_stride, col_stride = strides
    return {
        "data": address(bias) + first * bias.element_size() if bias.numel() else 0,
        "dtype": _DTYPE_NAMES[bias.dtype],
        "batch_stride": batch_stride,
        "head_stride": head_stride,
        "row_stride": row_stride,
        "col_stride": col_stride,
    }

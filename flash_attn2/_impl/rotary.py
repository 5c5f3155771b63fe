"""Rotary position embedding as a PyTorch module, for `nn`."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import (
    as_int,
    as_number,
    named_only,
    refuse_keywords,
    require_bool,
    require_tensor,
)
from flash_attn2._impl.checks import FLOAT_DTYPES, host_lengths
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.tensors import in_memory, require_allocated


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al. 2021) of queries and keys.

    Rotates pair i of the first `dim` elements of each head by the angle
    position / scaling_factor * base^(-2 i / dim), and leaves the other elements as they are.

        dim             even, at most head_dim
        base            wavelengths are from 2 pi to nearly 2 pi * base positions
        interleaved     pair i is elements (2 i, 2 i + 1), as in GPT-J, or by default elements
                        (i, i + dim / 2), as in GPT-NeoX and Llama
        scaling_factor  above 1: positions interpolated for longer contexts (Chen et al. 2023)

    It has no parameters and no state. Layers may share one instance, and so its table of cosines
    and sines, which is float32 whatever the dtype of the module, and grows when needed. Copies and
    pickles are without it; while something traces or transforms the call (torch.compile, export,
    torch.jit.trace, fake tensors, torch.func) it is neither made nor used.
    """

    @named_only
    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling_factor: float = 1.0,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse_keywords(RotaryEmbedding, unknown)
        super().__init__()
        dim = as_int("dim", dim)
        base, scaling_factor = as_number("base", base), as_number("scaling_factor", scaling_factor)
        require_bool("interleaved", interleaved)
        if dim <= 0 or dim % 2 != 0:
            raise ValueError(f"dim must be even and positive, got {dim}")
        if not (0 < base < math.inf and 0 < scaling_factor < math.inf):
            raise ValueError(
                "base and scaling_factor must be positive and finite, "
                f"got {base} and {scaling_factor}"
            )
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        self.scaling_factor = scaling_factor
        self._table: Tensor | None = None  # no buffer: those follow the dtype of the module

    def forward(self, x: Tensor, *, offset: int = 0, cu_seqlens: Tensor | None = None) -> Tensor:
        """Rotates x, (batch, seqlen, num_heads, head_dim) or packed (total, num_heads, head_dim).

        Positions count from `offset` in every sequence. Packed tensors need `cu_seqlens`, int32
        (batch + 1,): where each sequence begins, from 0 on, and where the last one ends; rows from
        there on are returned, but with unspecified values. Its values are checked where host
        memory holds them. The result has the dtype of x and is computed in float32 or better.
        """
        require_tensor("x", x)
        if x.ndim != (4 if cu_seqlens is None else 3):
            raise ValueError(
                "x must be (batch, seqlen, num_heads, head_dim), or (total, num_heads, head_dim) "
                f"with cu_seqlens, got shape {tuple(x.shape)}"
            )
        if x.dtype not in FLOAT_DTYPES:
            raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
        require_allocated(x=x)
        if x.shape[-1] < self.dim:
            raise ValueError(f"x must have a head_dim of at least {self.dim}, got {x.shape[-1]}")
        offset = as_int("offset", offset)
        if offset < 0:
            raise ValueError(f"offset must not be negative, got {offset}")
        rows = x.shape[-3]
        if cu_seqlens is not None:
            check_sequences(cu_seqlens, x)
        rotations = self._rotations(offset + rows, x.device)
        if cu_seqlens is None:
            rotations = rotations[:, offset:]
        else:
            rotations = rotations[:, offset + _positions(cu_seqlens, rows)]
        cos, sin = rotations.unsqueeze(-2)
        rotated, rest = x[..., : self.dim], x[..., self.dim :]
        if self.interleaved:
            a, b = rotated[..., ::2], rotated[..., 1::2]
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = rotated.chunk(2, -1)
            rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        rotated = rotated.to(x.dtype)
        return torch.cat((rotated, rest), -1) if rest.shape[-1] else rotated

    def _rotations(self, count: int, device: torch.device) -> Tensor:
        """Cosines and sines of the positions below `count`: float32 (2, count, dim / 2)."""
        if not ordinary():  # a table would be one of fake, traced or transformed tensors
            return self._compute(count, device)
        table = self._table
        if table is None or table.shape[1] < count or table.device != device:
            with torch.inference_mode(False):  # what evaluation caches must serve training too
                table = self._compute(1 << count.bit_length(), device)
            if is_ordinary(table):
                self._table = table
        return table[:, :count]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _compute(self, count: int, device: torch.device) -> Tensor:
        # In float64: at position 100,000, float32 angles would be off by 0.004.
        index = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device)
        position = torch.arange(count, device=device).double() / self.scaling_factor
        angles = position[:, None] * self.base ** (-index / self.dim)
        return torch.stack((angles.cos(), angles.sin())).float()

    def extra_repr(self) -> str:
        text = f"{self.dim}, base={self.base:g}"
        if self.interleaved:
            text += ", interleaved=True"
        if self.scaling_factor != 1.0:
            text += f", scaling_factor={self.scaling_factor:g}"
        return text


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


def _positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """The position of each of `total` packed rows in its sequence."""
    rows = torch.arange(total, dtype=torch.int32, device=cu_seqlens.device)
    sequences = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return rows - cu_seqlens[sequences]

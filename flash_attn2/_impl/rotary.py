"""Rotary position embedding as a PyTorch module, for `nn`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import (
    as_int,
    as_number,
    named_only,
    refuse_keywords,
    require_bool,
)
from flash_attn2._impl.checks import FLOAT_DTYPES
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.problem import MAX_SEQLEN
from flash_attn2._impl.rotation import check_rows, checked_offsets, positions_of, turn


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al. 2021) of queries and keys.

    Rotates pair i of the first `dim` elements of each head by the angle
    position / scaling_factor * base^(-2 i / dim), and leaves the other elements as they are.

        dim             even, at most head_dim
        base            wavelengths are from 2 pi to nearly 2 pi * base positions
        interleaved     pair i is elements (2 i, 2 i + 1), as in GPT-J, or by default elements
                        (i, i + dim / 2), as in GPT-NeoX and Llama. NOTE: the default of
                        `flash_attn_with_kvcache` is rotary_interleaved=True, as in flash-attn:
                        pass it this module's `interleaved` together with its `tables`
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

    def forward(
        self, x: Tensor, *, offset: int | Tensor = 0, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Rotates x, (batch, seqlen, num_heads, head_dim) or packed (total, num_heads, head_dim).

        With a dimension of 3 before the heads, (batch, seqlen, 3, num_heads, head_dim) or (total,
        3, num_heads, head_dim), x holds queries, keys and values, of which values stay.

        Positions count from `offset` in every sequence: an int, or an int32 or int64 tensor
        (batch,), one for each sequence. Packed tensors need `cu_seqlens`, int32 (batch + 1,): where
        each sequence begins, from 0 on, and where the last one ends; rows from there on are
        returned, but with unspecified values. Values of both tensors are checked where host memory
        holds them. The result has the dtype of x and is computed in float32 or better.
        """
        check_rows(x, cu_seqlens, joint=True)
        if x.shape[-1] < self.dim:
            raise ValueError(f"x must have a head_dim of at least {self.dim}, got {x.shape[-1]}")
        offset = checked_offsets("offset", offset, x, cu_seqlens)
        if isinstance(offset, Tensor):
            rotations = self._at(positions_of(x, offset, cu_seqlens))
        else:
            rows = x.shape[0] if cu_seqlens is not None else x.shape[1]
            rotations = self._rotations(offset + rows, x.device)
            if cu_seqlens is None:
                rotations = rotations[:, offset:]
            else:
                rotations = rotations[:, positions_of(x, offset, cu_seqlens)]
        cos, sin = rotations.unsqueeze(-2)
        if x.ndim == (4 if cu_seqlens is None else 3):
            return turn(x, cos, sin, self.interleaved)
        turned = turn(x[..., :2, :, :], cos.unsqueeze(-2), sin.unsqueeze(-2), self.interleaved)
        return torch.cat((turned, x[..., 2:, :, :]), -3)

    if TYPE_CHECKING:  # nn.Module says of a call that it takes and returns anything
        __call__ = forward

    def tables(
        self,
        seqlen: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions below `seqlen`, each (seqlen, dim / 2).

        They are `rotary_cos` and `rotary_sin` of `flash_attn_with_kvcache`, with
        `rotary_interleaved=rotary.interleaved` (its default is the other one), and `cos` and `sin`
        of `apply_rotary_emb`. dtype None: float32, which goes with queries of every dtype; device
        None: torch's default device. Those in float32 are the ones that the module keeps for later
        calls: do not write to them.
        """
        seqlen = as_int("seqlen", seqlen)
        if not 0 <= seqlen <= MAX_SEQLEN:
            raise ValueError(f"seqlen must be from 0 to {MAX_SEQLEN}, got {seqlen}")
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
        device = torch.empty(0, device=device).device
        cos, sin = self._rotations(seqlen, device).to(dtype)
        return cos, sin

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
        return self._at(torch.arange(count, device=device))

    def _at(self, positions: Tensor) -> Tensor:
        """Cosines and sines at these positions: float32 (2, ..., dim / 2)."""
        # In float64: at position 100,000, float32 angles would be off by 0.004.
        index = torch.arange(0, self.dim, 2, dtype=torch.float64, device=positions.device)
        scaled = positions.double() / self.scaling_factor
        angles = scaled[..., None] * self.base ** (-index / self.dim)
        return torch.stack((angles.cos(), angles.sin())).float()

    def extra_repr(self) -> str:
        text = f"{self.dim}, base={self.base:g}"
        if self.interleaved:
            text += ", interleaved=True"
        if self.scaling_factor != 1.0:
            text += f", scaling_factor={self.scaling_factor:g}"
        return text

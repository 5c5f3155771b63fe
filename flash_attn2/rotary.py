"""Rotary position embedding by given tables; `nn.RotaryEmbedding` has tables of its own."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from flash_attn2._impl.arguments import (
    named_only,
    refuse_keywords,
    require_bool,
    require_tensor,
)
from flash_attn2._impl.checks import FLOAT_DTYPES
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.rotation import check_rows, checked_offsets, positions_of, turn


@named_only
def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    **unknown: NoReturn,
) -> Tensor:
    """Turns pairs of entries of each head by the angles of its position (Su et al. 2021).

        x               (batch, seqlen, num_heads, head_dim), or packed (total, num_heads, head_dim)
                        with cu_seqlens, on any device
        cos, sin        (positions, rotary_dim / 2), of any floating dtype, float32 beside 16-bit x
                        too; rotary_dim is at most head_dim, entries behind it stay as they are
        interleaved     False: pairs are entries (i, i + rotary_dim / 2), as in GPT-NeoX and Llama;
                        True: (2 i, 2 i + 1), as in GPT-J, and by default in
                        `flash_attn_with_kvcache` (rotary_interleaved=True)
        inplace         the result is written over x, and x is returned
        seqlen_offsets  the position of the first row: an int, or an integer tensor (batch,), one
                        for each sequence
        cu_seqlens      int32 (batch + 1,): the rows of each packed sequence; those past the last
                        one are returned with unspecified values
        max_seqlen      not needed, and taken since flash-attn has it

    Returns the shape and dtype of x, computed in float32 or better. There are gradients of x, cos
    and sin, to any order. Positions have to be within the tables: ValueError where host memory says
    so; elsewhere, positions beyond take the last row. TypeError and ValueError name the argument.
    """
    if unknown:
        refuse_keywords(apply_rotary_emb, unknown)
    check_rows(x, cu_seqlens)
    _check_tables(x, cos, sin)
    require_bool("interleaved", interleaved)
    require_bool("inplace", inplace)
    offsets = checked_offsets("seqlen_offsets", seqlen_offsets, x, cu_seqlens)
    positions = positions_of(x, offsets, cu_seqlens)
    _require_within(positions, cos.shape[0], cu_seqlens)
    positions = positions.clamp(0, cos.shape[0] - 1)
    turned = turn(x, cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2), interleaved)
    return x.copy_(turned) if inplace else turned


def _check_tables(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, table in (("cos", cos), ("sin", sin)):
        require_tensor(name, table)
        if table.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64, got {table.dtype}"
            )
        if table.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {table.device}")
    if cos.ndim != 2 or cos.shape[0] == 0 or not 2 <= 2 * cos.shape[1] <= x.shape[-1]:
        raise ValueError(
            "cos must be (positions, rotary_dim / 2) with rotary_dim from 2 to the head_dim, "
            f"{x.shape[-1]}, got shape {tuple(cos.shape)}"
        )
    if sin.shape != cos.shape:
        raise ValueError(
            f"sin must have the shape of cos, {tuple(cos.shape)}, got {tuple(sin.shape)}"
        )


def _require_within(positions: Tensor, count: int, cu_seqlens: Tensor | None) -> None:
    """That tables of so many rows have all positions, where host memory says so."""
    if not (positions.is_cpu and ordinary() and is_ordinary(positions)):
        return
    if cu_seqlens is not None:
        positions = positions[: int(cu_seqlens[-1])]
    if positions.numel() and (most := int(positions.max())) >= count:
        raise ValueError(f"cos must have a row for each of {most + 1} positions, got {count}")

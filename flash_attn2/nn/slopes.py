"""Slopes of ALiBi (Press et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int, as_number


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """The slopes of Press et al. 2021, float32 (num_heads,).

    For n heads, n a power of two, they are 2^(-8/n), 2^(-16/n), ..., 2^-8. Other numbers of heads
    have those of the power of two below, and then every other one of the power of two above.
    """
    num_heads = as_int("num_heads", num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    return torch.tensor(slopes_of(num_heads), dtype=torch.float32, device=device)


def slopes_of(num_heads: int) -> list[float]:
    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 1 << (num_heads.bit_length() - 1)
    slopes = geometric(below) + geometric(2 * below)[::2]
    return slopes[:num_heads]


def given_slopes(alibi: Any, num_heads: int) -> tuple[float, ...] | None:
    """What `alibi` asks for, as numbers."""
    if isinstance(alibi, bool):
        return tuple(slopes_of(num_heads)) if alibi else None
    if isinstance(alibi, Tensor):
        if alibi.is_meta or alibi.ndim != 1:
            raise ValueError(
                f"alibi must be ({num_heads},) with values, got shape {tuple(alibi.shape)} on "
                f"{alibi.device}"
            )
        alibi = alibi.detach().tolist()
    if not isinstance(alibi, (list, tuple)):
        raise TypeError(f"alibi must be True, False, or the slopes themselves, got {alibi!r}")
    if len(alibi) != num_heads:
        raise ValueError(f"alibi must be ({num_heads},), got shape ({len(alibi)},)")
    return tuple(as_number("alibi", slope) for slope in alibi)

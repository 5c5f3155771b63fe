"""What layers ask of their input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.rotary import RotaryEmbedding
from flash_attn2._impl.tensors import require_allocated


def check_input(x: Tensor, projection: nn.Module, embed_dim: int, packed: bool) -> None:
    """Of x, which `projection` takes."""
    require_tensor("x", x)
    if x.ndim != (2 if packed else 3) or x.shape[-1] != embed_dim:
        raise ValueError(
            f"x must be (batch, seqlen, {embed_dim}), or (total, {embed_dim}) with "
            f"cu_seqlens, got shape {tuple(x.shape)}"
        )
    require_allocated(x=x)
    if type(projection) is not nn.Linear:  # another layer may take what it likes
        return
    weight = projection.weight
    if x.device != weight.device:
        raise ValueError(
            f"x must be on the device of the parameters, {weight.device}, got {x.device}"
        )
    autocast = torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")
    if x.dtype != weight.dtype and not autocast:
        raise TypeError(f"x must have the dtype of the parameters, {weight.dtype}, got {x.dtype}")


def check_rotary(rotary: Any, name: str, width: int, example: str) -> None:
    """Of columns whose argument has this name and whose number this is."""
    if rotary is None:
        return
    if not isinstance(rotary, RotaryEmbedding):
        raise TypeError(
            f"rotary must be a RotaryEmbedding, such as RotaryEmbedding({example}), or None, "
            f"got {rotary!r}"
        )
    if rotary.dim > width:
        raise ValueError(f"rotary must turn at most {name} = {width}, got {rotary.dim}")


def check_bound(cu_seqlens: Tensor | None, max_seqlen: int | None) -> None:
    if cu_seqlens is None and max_seqlen is not None:
        raise ValueError("max_seqlen must come with cu_seqlens, of packed x, got it alone")

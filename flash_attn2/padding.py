"""Between padded (batch, seqlen, ...) and packed (total, ...) tensors.

Compatible with `flash_attn.bert_padding` of flash-attn 2.8. All functions are
differentiable; `unpad_input` waits for the device, since the shape of its result depends on data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import Tensor

from flash_attn2._impl.arguments import as_int, require_tensor
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.tensors import require_allocated

_MAX_SIZE = 2**31 - 1


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices`, int32 or int64 (n,), of x (rows, ...): (n, ...)."""
    require_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("x must have rows, got a tensor without dimensions")
    indices = _indices(indices)
    require_allocated(x=x)
    _require_device("indices", indices, "x", x)
    _require_within(indices, x.shape[0], "the rows of x")
    return x.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """The inverse of `index_first_axis`: (n, ...) -> (first_axis_dim, ...), zeros elsewhere.

    Indices, int32 or int64 (n,), differ: which of several values of one row stays is not said.
    """
    require_tensor("values", values)
    indices = _indices(indices)
    count = as_int("first_axis_dim", first_axis_dim)
    if not 0 <= count <= _MAX_SIZE:
        raise ValueError(f"first_axis_dim must be from 0 to {_MAX_SIZE}, got {count}")
    if values.ndim == 0 or values.shape[0] != indices.shape[0]:
        raise ValueError(
            f"values must have a row for each of {indices.shape[0]} indices, "
            f"got shape {tuple(values.shape)}"
        )
    require_allocated(values=values)
    _require_device("indices", indices, "values", values)
    _require_within(indices, count, "first_axis_dim")
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Drop the padding of (batch, seqlen, ...).

    attention_mask (batch, seqlen), bool or int, is nonzero at tokens; unused_mask likewise, at rows
    that are kept in the packed tensor without being tokens. Of floats only 0 and 1 are taken, and
    for attention_mask not 0 alone: an additive mask, 0 at tokens, would mean the opposite. Returns

        packed (total, ...), the rows that either mask selects;
        indices (total,), int64, their positions in the flattened input, for `pad_input`;
        cu_seqlens (batch + 1,), int32; max_seqlen, int;
        seqused (batch,), int32, the number of tokens of each sequence.
    """
    require_tensor("hidden_states", hidden_states)
    if hidden_states.ndim < 2:
        raise ValueError(
            f"hidden_states must be (batch, seqlen, ...), got shape {tuple(hidden_states.shape)}"
        )
    require_allocated(hidden_states=hidden_states)
    tokens = _selected("attention_mask", attention_mask, hidden_states)
    if attention_mask.is_floating_point() and tokens.numel() and not tokens.any():
        raise ValueError(
            "attention_mask must be bool or int, nonzero at tokens, got only zeros of "
            f"{attention_mask.dtype}: of an additive mask give mask == 0"
        )
    kept = tokens
    if unused_mask is not None:
        kept = tokens | _selected("unused_mask", unused_mask, hidden_states)
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    max_seqlen = int(lengths.max()) if lengths.numel() else 0
    packed = rearrange(hidden_states, "b s ... -> (b s) ...").index_select(0, indices)
    return packed, indices, cu_seqlens, max_seqlen, tokens.sum(-1, dtype=torch.int32)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: (total, ...) -> (batch, seqlen, ...), zeros as padding.

    indices, int32 or int64 (total,), are positions in the flattened (batch, seqlen).
    """
    require_tensor("hidden_states", hidden_states)
    indices = _indices(indices)
    batch, seqlen = as_int("batch", batch), as_int("seqlen", seqlen)
    for name, size in (("batch", batch), ("seqlen", seqlen)):
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
        if size > _MAX_SIZE:
            raise ValueError(f"{name} must be at most {_MAX_SIZE}, got {size}")
    if hidden_states.ndim == 0 or hidden_states.shape[0] != indices.shape[0]:
        raise ValueError(
            f"hidden_states must have a row for each of {indices.shape[0]} indices, "
            f"got shape {tuple(hidden_states.shape)}"
        )
    require_allocated(hidden_states=hidden_states)
    _require_device("indices", indices, "hidden_states", hidden_states)
    _require_within(indices, batch * seqlen, "batch * seqlen")
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    padded = padded.index_copy(0, indices, hidden_states)
    return rearrange(padded, "(b s) ... -> b s ...", b=batch, s=seqlen)


def _indices(indices: Tensor) -> Tensor:
    require_tensor("indices", indices)
    if indices.ndim != 1 or indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"indices must be int32 or int64 (n,), got {indices.dtype} of shape "
            f"{tuple(indices.shape)}"
        )
    require_allocated(indices=indices)
    return indices.long()


def _require_within(indices: Tensor, count: int, what: str) -> None:
    """That they are below so many, where host memory holds them."""
    if indices.is_cpu and indices.numel() and ordinary() and is_ordinary(indices):
        low, high = (int(x) for x in torch.aminmax(indices))
        if low < 0 or high >= count:
            raise ValueError(
                f"indices must be from 0 to {what} - 1 = {count - 1}, "
                f"got {low if low < 0 else high}"
            )


def _require_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


def _selected(name: str, mask: Tensor, hidden_states: Tensor) -> Tensor:
    require_tensor(name, mask)
    if mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"{name} must have shape (batch, seqlen) = {tuple(hidden_states.shape[:2])}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.is_complex() or mask.is_quantized:
        raise TypeError(f"{name} must be bool or int, got {mask.dtype}")
    _require_device(name, mask, "hidden_states", hidden_states)
    if mask.is_meta:
        raise ValueError(f"{name} must have values, got one on the device meta")
    require_allocated(**{name: mask})
    if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{name} must be bool or int, nonzero at tokens, got {mask.dtype} with other values "
            "than 0 and 1: of an additive mask give mask == 0"
        )
    if mask.dtype.is_signed and not mask.is_floating_point() and (mask < 0).any():
        raise ValueError(f"{name} must not be negative, got {int(mask.min())}")
    return mask != 0

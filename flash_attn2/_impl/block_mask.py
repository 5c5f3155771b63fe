"""`block_mask` of a call: what passes for one, and whether it fits the tensors.

Its contents are not looked at: kernels stay within the tensors whatever lists say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import masks
from flash_attn2._impl.problem import BLOCK, NO_WINDOW, BlockMask, Problem
from flash_attn2.masks.words import num_blocks

_MAKE_ONE = "build one with flash_attn2.masks, such as (masks.causal() & ...).build(seqlen)"


def make_block_mask(value: Any) -> BlockMask:
    """Of a `flash_attn2.masks.BlockMask`. TypeError for anything else."""
    if not isinstance(value, masks.BlockMask):
        raise TypeError(f"block_mask must be a flash_attn2.masks.BlockMask, got {_what(value)}")
    return BlockMask(value.row_offsets, value.cols, value.tiles, value.bits)


def _what(value: Any) -> str:
    """It, and how to make a block mask of it."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if kind.__name__ == "BlockMask" and kind.__module__.startswith("torch."):
        return f"{name}: use masks.BlockMask.from_torch(block_mask)"
    if isinstance(value, Tensor):
        given = f"a tensor of {value.dtype}"
        if value.dtype == torch.bool:
            return f"{given}: use masks.BlockMask.from_dense(block_mask)"
        return f"{given}: {_MAKE_ONE}"
    if callable(getattr(value, "build", None)):
        return "a pattern: use block_mask.build(seqlen_q, seqlen_k, device=q.device)"
    return f"{name}: {_MAKE_ONE}"


def require_lengths(block_mask: Any, q: Tensor, k: Tensor) -> None:
    """ValueError for a mask of other lengths than those of dense queries and keys, which may be
    packed, and whose shapes have not been checked yet."""
    if q.ndim < 4 or k.ndim < 4:
        return  # which is said later
    for side, rows, length in (
        ("q", q.shape[1], block_mask.seqlen_q),
        ("k", k.shape[1], block_mask.seqlen_k),
    ):
        if rows != length:
            raise ValueError(
                f"block_mask must be for the lengths of q and k, {q.shape[1]} and {k.shape[1]}, "
                f"got one with seqlen_{side}={length}"
            )


def check_block_mask(p: Problem, batch: int) -> None:
    """Of dense tensors whose shapes have been checked: the mask has this batch and these heads, and
    stands alone."""
    mask = p.options.block_mask
    if all(x is None for x in mask):
        return
    if p.options.window != NO_WINDOW:
        raise ValueError(
            "block_mask must come without causal and window_size, got a window of "
            f"{tuple(p.options.window)}: say it in the mask, as in masks.causal() & ... or "
            "masks.window(left, right) & ..."
        )
    if p.seqs_q.seqused is not None:
        raise NotImplementedError(
            "seqused_q must be None with block_mask, got a tensor: leave the rows that do not "
            "count out of the mask"
        )
    _check_tensors(p)
    offsets = mask.row_offsets
    assert offsets is not None
    assert p.k is not None
    num_heads, num_heads_kv = p.q.shape[-2], p.k.shape[-2]
    if offsets.shape[0] not in (1, batch):
        raise ValueError(
            f"block_mask must have batch 1 or that of q, {batch}, got {offsets.shape[0]}"
        )
    if offsets.shape[1] not in (1, num_heads_kv, num_heads):
        raise ValueError(
            f"block_mask must have 1 head, num_heads_kv, {num_heads_kv}, or num_heads, "
            f"{num_heads}, got {offsets.shape[1]}"
        )
    rows = num_blocks(p.q.shape[1])
    if offsets.shape[2] != rows + 1:
        raise ValueError(
            f"block_mask must be for the {p.q.shape[1]} rows of q, which are {rows} blocks, got "
            f"one with {offsets.shape[2] - 1}"
        )


_TENSORS = (
    ("block_mask_offsets", torch.int64, ("batch or 1", "heads", "blocks of queries + 1")),
    ("block_mask_cols", torch.int32, ("entries",)),
    ("block_mask_tiles", torch.int32, ("entries",)),
    ("block_mask_bits", torch.int64, ("tiles", BLOCK)),
)


def _check_tensors(p: Problem) -> None:
    """Types and shapes of what the ops take."""
    mask, device = p.options.block_mask, p.q.device
    for (name, dtype, dims), tensor in zip(_TENSORS, mask, strict=True):
        if tensor is None:
            raise ValueError(f"{name} must be given with the other tensors of block_mask, got None")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.ndim != len(dims):
            raise ValueError(
                f"{name} must be ({', '.join(map(str, dims))}), got shape {tuple(tensor.shape)}"
            )
        if tensor.device != device:
            raise ValueError(
                f"block_mask must be on the device of q, {device}, got {tensor.device}: use "
                "block_mask.to(q.device)"
            )
    _, cols, tiles, bits = mask
    assert cols is not None
    assert tiles is not None
    assert bits is not None
    if tiles.shape != cols.shape:
        raise ValueError(
            "block_mask_tiles must have as many elements as block_mask_cols, "
            f"{cols.shape[0]}, got {tiles.shape[0]}"
        )
    if bits.shape[0] == 0 or bits.shape[1] != BLOCK:
        raise ValueError(
            f"block_mask_bits must be (tiles, {BLOCK}) with at least one tile, got shape "
            f"{tuple(bits.shape)}"
        )


def require_unmapped(names: Sequence[str], in_dims: Sequence[int | None]) -> None:
    """ValueError where torch.vmap maps the tensors of a mask, among arguments of these names."""
    for name, dim in zip(names, in_dims, strict=False):
        if dim is not None and name.startswith("block_mask"):
            raise ValueError(
                "block_mask must be one for all that torch.vmap maps, got a mapped one: give it "
                "in_dims of None, and what differs to the batch"
            )

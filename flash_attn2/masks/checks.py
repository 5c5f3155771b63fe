"""What the tensors of a BlockMask must be, and what they must hold where the host can see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int, require_tensor
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.problem import BLOCK, MAX_SEQLEN
from flash_attn2._impl.tensors import require_allocated
from flash_attn2.masks.lists import Lists
from flash_attn2.masks.words import ALL, num_blocks

_DTYPES = (torch.int64, torch.int32, torch.int32, torch.int64)


def checked_seqlen(name: str, value: Any) -> int:
    seqlen = as_int(name, value)
    if not 0 <= seqlen <= MAX_SEQLEN:
        raise ValueError(f"{name} must be from 0 to {MAX_SEQLEN}, got {seqlen}")
    return seqlen


def check(lists: Lists, seqlen_q: int, seqlen_k: int) -> None:
    """TypeError or ValueError that names the argument at fault."""
    for name, tensor in lists._asdict().items():
        require_tensor(name, tensor)
    for name, tensor, dtype in zip(lists._fields, lists, _DTYPES, strict=True):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.device != lists.bits.device:
            raise ValueError(
                f"{name} must be on the device of bits, {lists.bits.device}, got {tensor.device}"
            )
    _check_shapes(lists, seqlen_q)
    require_allocated(**lists._asdict())
    if ordinary() and all(t.is_cpu and is_ordinary(t) for t in lists):
        _check_offsets(lists)
        _check_entries(lists, num_blocks(seqlen_k))


def _check_shapes(lists: Lists, seqlen_q: int) -> None:
    rows = num_blocks(seqlen_q) + 1
    shape = tuple(lists.row_offsets.shape)
    if len(shape) != 3 or shape[0] < 1 or shape[1] < 1 or shape[2] != rows:
        raise ValueError(
            f"row_offsets must have shape (batch, heads, {rows}) for seqlen_q {seqlen_q}, batch "
            f"and heads at least 1, got {shape}"
        )
    if lists.cols.ndim != 1:
        raise ValueError(f"cols must have shape (entries,), got {tuple(lists.cols.shape)}")
    if lists.tiles.shape != lists.cols.shape:
        raise ValueError(
            f"tiles must have the shape of cols, {tuple(lists.cols.shape)}, got "
            f"{tuple(lists.tiles.shape)}"
        )
    shape = tuple(lists.bits.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != BLOCK:
        raise ValueError(f"bits must have shape (tiles, {BLOCK}), at least 1 tile, got {shape}")


def _check_offsets(lists: Lists) -> None:
    offsets, entries = lists.row_offsets, lists.cols.numel()
    lists_begin, lists_end = offsets[..., 0].flatten(), offsets[..., -1].flatten()
    if (
        int(lists_begin[0]) != 0
        or int(lists_end[-1]) != entries
        or bool((offsets.diff(dim=-1) < 0).any())
        or not torch.equal(lists_begin[1:], lists_end[:-1])
    ):
        raise ValueError(
            f"row_offsets must go from 0 to the length of cols, {entries}, without decreasing, "
            "and the list of a head must begin where that of the one before ends"
        )


def _check_entries(lists: Lists, cols: int) -> None:
    if not bool((lists.bits[0] == ALL).all()):
        raise ValueError("bits must have all bits of its tile 0 set")
    if lists.cols.numel() == 0:
        return
    _check_range("cols", lists.cols, cols, "blocks of keys")
    _check_range("tiles", lists.tiles, lists.bits.shape[0], "tiles of bits")
    ascending = torch.zeros(lists.cols.numel() + 1, dtype=torch.bool, device="cpu")
    torch.gt(lists.cols[1:], lists.cols[:-1], out=ascending[1:-1])
    ascending[lists.row_offsets.flatten()] = True
    if not bool(ascending.all()):
        raise ValueError("cols must ascend within a row")


def _check_range(name: str, tensor: Tensor, count: int, what: str) -> None:
    low, high = (int(x) for x in torch.aminmax(tensor))
    if low < 0 or high >= count:
        raise ValueError(
            f"{name} must be from 0 to {what} - 1 = {count - 1}, got {low if low < 0 else high}"
        )

"""Patterns that are given pair by pair or block by block: tensors and functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.arguments import checked_block, truths
from flash_attn2.masks.pattern import Build, Leaf, Unknown, shape_of

__all__ = ["blocks", "dense", "function"]


@dataclass(frozen=True, eq=False, repr=False)
class _Table(Leaf):
    mask: Tensor
    """(batch or 1, heads or 1, ...)."""

    @property
    def batch(self) -> int:
        return self.mask.shape[0]

    @property
    def heads(self) -> int:
        return self.mask.shape[1]


# Blocks


def blocks(mask: Tensor, block: int | tuple[int, int] = BLOCK) -> Blocks:
    """Blocks that are seen as a whole: a bool tensor (batch, heads, rows, cols) or (rows, cols),
    True where a block of queries sees a block of keys.

    rows is ceil(seqlen_q / block), cols likewise; batch and heads may be 1. block is the number of
    queries and keys of a block, or a pair of them; multiples of 64. The tensor is not copied, and
    must not be changed. TypeError for other dtypes, ValueError for other shapes.
    """
    mask = truths("mask", mask)
    if mask.ndim not in (2, 4) or 0 in mask.shape[:-2]:
        raise ValueError(
            f"mask must have shape (batch, heads, rows, cols) or (rows, cols), got "
            f"{tuple(mask.shape)}"
        )
    of_q, of_k = block if isinstance(block, tuple) and len(block) == 2 else (block, block)
    return Blocks(
        mask if mask.ndim == 4 else mask[None, None],
        checked_block("block", of_q),
        checked_block("block", of_k),
    )


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(_Table):
    block_q: int
    block_k: int

    def lower(self, build: Build) -> dict[str, Any]:
        shape = (-(-build.seqlen_q // self.block_q), -(-build.seqlen_k // self.block_k))
        if tuple(self.mask.shape[2:]) != shape:
            raise ValueError(
                f"blocks must have {shape[0]} rows and {shape[1]} columns for seqlen_q "
                f"{build.seqlen_q} and seqlen_k {build.seqlen_k}, got {tuple(self.mask.shape[2:])}"
            )
        return {
            "kind": "blocks",
            "data": build.address(self.mask.to("cpu").contiguous()),
            "batch": self.batch,
            "heads": self.heads,
            "block_q": self.block_q,
            "block_k": self.block_k,
        }

    def __repr__(self) -> str:
        block = self.block_q if self.block_q == self.block_k else (self.block_q, self.block_k)
        return f"blocks({shape_of(self.mask)}, {block})"


# Pairs


def dense(mask: Tensor) -> Dense:
    """Pairs of a bool tensor that broadcasts to (batch, heads, seqlen_q, seqlen_k), True where a
    query sees a key; on any device.

    Only blocks that the other operands of `&` leave open are read. The tensor is not copied, and
    must not be changed. TypeError for other dtypes, ValueError for other shapes.
    """
    mask = truths("mask", mask)
    if mask.ndim > 4 or 0 in mask.shape[:-2]:
        raise ValueError(
            "mask must broadcast to (batch, heads, seqlen_q, seqlen_k), got shape "
            f"{tuple(mask.shape)}"
        )
    return Dense(mask[(None,) * (4 - mask.ndim)])


class Dense(_Table):
    """Lengths of its mask may be 1, too."""

    def lower(self, build: Build) -> dict[str, Any]:
        lengths = (build.seqlen_q, build.seqlen_k)
        given = tuple(self.mask.shape[2:])
        if any(x not in (1, y) for x, y in zip(given, lengths, strict=True)):
            raise ValueError(
                f"dense must have a mask of {lengths} queries and keys, or 1 of them, got {given}"
            )
        mask = self.mask.expand(build.batch, build.heads, *lengths)
        if not mask.is_cpu:
            build.unknown.append(Unknown(lambda b, h, q, k: mask[b, h, q, k], mask.device))
            return {"kind": "unknown"}
        names = ("batch_stride", "head_stride", "row_stride", "col_stride")
        strides = dict(zip(names, mask.stride(), strict=True))
        return {"kind": "dense", "data": build.address(mask), **strides}

    def __repr__(self) -> str:
        return f"dense({shape_of(self.mask)})"


_Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def function(mask_mod: _Mod) -> Function:
    """Pairs by a function with FlexAttention's signature: mask_mod(batch, head, q_idx, kv_idx) gets
    int64 tensors that broadcast against each other, on the device for which the mask is built, and
    returns bools that broadcast to their common shape.

    It is called for blocks that the other operands of `&` leave open, some hundreds at once. If a
    mask is built for several sequences or heads, each gets a list of its own. TypeError for what
    cannot be called and, while a mask is built, for other results.
    """
    if not callable(mask_mod):
        raise TypeError(f"mask_mod must be a function, got {type(mask_mod).__name__}")
    return Function(mask_mod)


@dataclass(frozen=True, eq=False, repr=False)
class Function(Leaf):
    mask_mod: _Mod

    def varies_by_batch(self, build: Build) -> bool:
        return build.batch > 1

    def varies_by_head(self, build: Build) -> bool:
        return build.heads > 1

    def lower(self, build: Build) -> dict[str, Any]:
        build.unknown.append(Unknown(self._pairs, build.device))
        return {"kind": "unknown"}

    def _pairs(self, batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        pairs = self.mask_mod(batch, head, q_idx, kv_idx)
        if not isinstance(pairs, Tensor) or pairs.dtype != torch.bool:
            got = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
            raise TypeError(f"mask_mod must return a bool tensor, got {got}")
        shape = (batch.shape[0], q_idx.shape[1], kv_idx.shape[2])
        try:
            return pairs.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"mask_mod must return what broadcasts to {shape}, got shape {tuple(pairs.shape)}"
            ) from None

    def __repr__(self) -> str:
        return f"function({getattr(self.mask_mod, '__name__', repr(self.mask_mod))})"

"""`BlockMask`: which keys each query sees, as lists of blocks of 64 queries and 64 keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from flash_attn2._impl.arguments import as_int, require_tensor
from flash_attn2._impl.observe import is_ordinary
from flash_attn2.masks import lists
from flash_attn2.masks.checks import check, checked_seqlen
from flash_attn2.masks.lists import NAMES, Lists

__all__ = ["BlockMask", "MaskRow"]


class MaskRow(NamedTuple):
    """What 64 queries see."""

    cols: Tensor
    """int32 (blocks,): blocks of keys with a visible pair, ascending."""
    full: Tensor
    """bool (blocks,): whether all pairs of the block are visible."""


class BlockMask:
    """Which keys each query sees, for `flash_attn_func(..., block_mask=)`.

    Made by `pattern.build`, `from_dense` or `from_torch`; or from its parts:

        seqlen_q, seqlen_k  lengths, which the tensors of a call must have
        row_offsets   int64 (batch, heads, ceil(seqlen_q / 64) + 1): the entries of block r of 64
                      queries are those from row_offsets[b, h, r] to row_offsets[b, h, r + 1]. The
                      list of a head begins where that of the one before ends. batch 1 and heads 1
                      stand for any; heads may else be those of the keys or of the queries
        cols          int32 (entries,): blocks of 64 keys, ascending within a row. What is not
                      listed is not visible
        tiles         int32 (entries,): index into bits; 0 where all pairs of the block are visible
        bits          int64 (tiles, 64): a word for each query of a block, in it a bit for each key,
                      the lowest for the first; all ones in tile 0. Bits outside the lengths do not
                      count

    All on one device; kept contiguous, and copied where they are not. TypeError or ValueError for
    other types, dtypes, shapes or devices and, where the tensors lie in host memory, for what they
    hold. A mask must not be changed: its attributes cannot be set, and tensors must be left as
    they are.

    Masks are equal if they have the same lengths, batch, heads and visible pairs, on whatever
    devices. They can be pickled (`torch.load(..., weights_only=True)` takes them too), copied, and
    are nodes of PyTorch's pytrees with the four tensors as leaves.
    """

    __slots__ = (
        "__weakref__",
        "_canonical",
        "_density",
        "bits",
        "cols",
        "row_offsets",
        "seqlen_k",
        "seqlen_q",
        "tiles",
    )

    seqlen_q: int
    seqlen_k: int
    row_offsets: Tensor
    cols: Tensor
    tiles: Tensor
    bits: Tensor
    _canonical: bool  # known to be in canonical form
    _density: float | None

    def __init__(
        self,
        seqlen_q: int,
        seqlen_k: int,
        row_offsets: Tensor,
        cols: Tensor,
        tiles: Tensor,
        bits: Tensor,
    ) -> None:
        seqlen_q = checked_seqlen("seqlen_q", seqlen_q)
        seqlen_k = checked_seqlen("seqlen_k", seqlen_k)
        lists = Lists(row_offsets, cols, tiles, bits)
        check(lists, seqlen_q, seqlen_k)
        self._fill(seqlen_q, seqlen_k, (t.contiguous() for t in lists))

    @classmethod
    def unchecked(
        cls, seqlen_q: int, seqlen_k: int, lists: Iterable[Any], canonical: bool = False
    ) -> BlockMask:
        """Of lists that are known to be right, or of what a pytree puts in the place of tensors."""
        mask = cls.__new__(cls)
        mask._fill(seqlen_q, seqlen_k, lists, canonical)
        return mask

    def _fill(
        self, seqlen_q: int, seqlen_k: int, lists: Iterable[Tensor], canonical: bool = False
    ) -> None:
        write = object.__setattr__
        write(self, "seqlen_q", seqlen_q)
        write(self, "seqlen_k", seqlen_k)
        for name, tensor in zip(NAMES, lists, strict=True):
            write(self, name, tensor)
        write(self, "_canonical", canonical)
        write(self, "_density", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a BlockMask cannot be changed: {name} was to be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a BlockMask cannot be changed: {name} was to be deleted")

    # What it is

    @property
    def batch(self) -> int:
        """Sequences with a mask of their own; 1: one for all."""
        return self.row_offsets.shape[0]

    @property
    def heads(self) -> int:
        """Heads with a mask of their own; 1: one for all."""
        return self.row_offsets.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.bits.device

    @property
    def density(self) -> float:
        """The share of pairs that are visible, of all batches and heads. Waits for the device."""
        if self._density is None:
            pairs = self.batch * self.heads * self.seqlen_q * self.seqlen_k
            visible = lists.count_pairs(self._lists, self.seqlen_q, self.seqlen_k) if pairs else 0
            object.__setattr__(self, "_density", visible / max(pairs, 1))
        assert self._density is not None
        return self._density

    def rows(self, batch: int = 0, head: int = 0) -> Iterator[MaskRow]:
        """For each block of 64 queries what it sees, in order. IndexError for others than it has.

        A device is waited for.
        """
        for name, value, count in (("batch", batch, self.batch), ("head", head, self.heads)):
            if not 0 <= as_int(name, value) < count:
                raise IndexError(f"{name} must be from 0 to {count - 1}, got {value}")
        return self._rows(self.row_offsets[batch, head].tolist())

    def _rows(self, offsets: list[int]) -> Iterator[MaskRow]:
        for begin, end in itertools.pairwise(offsets):
            yield MaskRow(self.cols[begin:end], self.tiles[begin:end] == 0)

    def __repr__(self) -> str:
        lengths = f"{self.seqlen_q}, {self.seqlen_k}"
        if not all(isinstance(t, Tensor) for t in self._lists):
            return f"BlockMask({lengths}, {', '.join(str(x) for x in self._lists)})"
        sizes = f"{lengths}, batch={self.batch}, heads={self.heads}"
        entries = f"{self.cols.numel()} blocks, {self.bits.shape[0] - 1} different partial ones"
        share = f", density {self.density:.3g}" if all(map(is_ordinary, self._lists)) else ""
        return f"BlockMask({sizes}: {entries}{share}, {self.device})"

    # Other forms

    @classmethod
    def from_dense(cls, mask: Tensor) -> BlockMask:
        """The mask of a bool tensor (batch, heads, seqlen_q, seqlen_k) or (seqlen_q, seqlen_k),
        True where a query sees a key, on its device. Sizes 1 of batch and heads stand for any.

        TypeError for other dtypes, ValueError for other shapes.
        """
        require_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be torch.bool, got {mask.dtype}")
        if mask.ndim not in (2, 4):
            raise ValueError(
                "mask must be (batch, heads, seqlen_q, seqlen_k) or (seqlen_q, seqlen_k), got "
                f"shape {tuple(mask.shape)}"
            )
        if mask.is_meta:
            raise ValueError("mask must have values, got a tensor on the device meta")
        if mask.ndim == 2:
            mask = mask[None, None]
        batch, heads, seqlen_q, seqlen_k = mask.shape
        if batch < 1 or heads < 1:
            raise ValueError(
                f"mask must have batch and heads of at least 1, got shape {tuple(mask.shape)}"
            )
        from flash_attn2.masks.tables import dense

        return dense(mask).build(seqlen_q, seqlen_k, batch=batch, heads=heads, device=mask.device)

    @classmethod
    def from_torch(cls, block_mask: Any) -> BlockMask:
        """The same pairs as a BlockMask of torch.nn.attention.flex_attention shows, on its device.

        Its mask_mod is called in its partial blocks, as `masks.function` calls it. TypeError for
        other objects, ValueError for a BLOCK_SIZE that is not of multiples of 64. In
        PyTorch before 2.6, create_block_mask keeps neither lengths, which are then those of whole
        blocks, nor any BLOCK_SIZE but 128.
        """
        from flash_attn2.masks.torch_masks import from_torch

        return from_torch(block_mask)

    def to_dense(self) -> Tensor:
        """bool (batch, heads, seqlen_q, seqlen_k), True where a query sees a key."""
        return lists.to_dense(self._lists, self.seqlen_q, self.seqlen_k)

    def plot(self, ax: Any = None, *, batch: int = 0, head: int = 0) -> Any:
        """Draws full, partial and empty blocks into matplotlib axes (None: new ones), which are
        returned, with the density of the whole mask as their title.

        ImportError without matplotlib, IndexError for a batch or head that it has not.
        """
        from flash_attn2.masks.plot import plot

        self.rows(batch, head)
        return plot(self, ax, batch, head)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> BlockMask:
        """The same mask on another device; itself, if it is there."""
        lists = [t.to(device, non_blocking=non_blocking) for t in self._lists]
        if lists[0] is self.row_offsets:
            return self
        return self.unchecked(self.seqlen_q, self.seqlen_k, lists, self._canonical)

    @property
    def _lists(self) -> Lists:
        return Lists(self.row_offsets, self.cols, self.tiles, self.bits)

    # Equality and copies

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockMask):
            return NotImplemented
        if self is other:
            return True
        if (self.seqlen_q, self.seqlen_k) != (other.seqlen_q, other.seqlen_k):
            return False
        ours, theirs = self._canonical_lists(), other._canonical_lists()
        return all(torch.equal(a, b.to(a.device)) for a, b in zip(ours, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((self.seqlen_q, self.seqlen_k, self.batch, self.heads))

    def _canonical_lists(self) -> Lists:
        if self._canonical:
            return self._lists
        return lists.canonical(self._lists, self.seqlen_q, self.seqlen_k)

    def __copy__(self) -> BlockMask:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockMask, (self.seqlen_q, self.seqlen_k, *self._lists)


def _flatten(mask: BlockMask) -> tuple[list[Any], tuple[int, int]]:
    return list(mask._lists), (mask.seqlen_q, mask.seqlen_k)


def _flatten_with_keys(mask: BlockMask) -> tuple[list[tuple[Any, Any]], tuple[int, int]]:
    leaves, lengths = _flatten(mask)
    keys = [pytree.GetAttrKey(name) for name in NAMES]
    return list(zip(keys, leaves, strict=True)), lengths


def _unflatten(leaves: Iterable[Any], lengths: Any) -> BlockMask:
    return BlockMask.unchecked(lengths[0], lengths[1], leaves)


pytree.register_pytree_node(
    BlockMask,
    _flatten,
    _unflatten,
    serialized_type_name="flash_attn2.masks.BlockMask",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=_flatten_with_keys,
)
# Exported programs take their arguments apart by a table of their own in older releases.
fx_pytree.register_pytree_flatten_spec(BlockMask, lambda mask, _: _flatten(mask)[0])
torch.serialization.add_safe_globals([BlockMask])

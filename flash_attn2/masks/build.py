"""A pattern and lengths -> a BlockMask, or how much it shows, by native code (csrc/masks)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl import backends
from flash_attn2._impl.arguments import as_int
from flash_attn2._impl.observe import is_ordinary
from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.block_mask import BlockMask
from flash_attn2.masks.checks import checked_seqlen
from flash_attn2.masks.lists import Lists
from flash_attn2.masks.pattern import Build, Pattern, Unknown
from flash_attn2.masks.words import num_blocks, pack

_CPU = torch.device("cpu")
_AT_ONCE = 256  # blocks of an unknown part: 8 MB for each int64 that is computed of its pairs
_MAX_COUNT = 2**31 - 1


def build(
    pattern: Pattern,
    seqlen_q: int,
    seqlen_k: int | None,
    *,
    batch: int,
    heads: int,
    device: torch.device | str | int | None,
) -> BlockMask:
    """`Pattern.build`."""
    device = torch.get_default_device() if device is None else torch.device(device)
    made = _checked(pattern, seqlen_q, seqlen_k, batch, heads, device)
    lists = _native(pattern, made)
    return BlockMask.unchecked(made.seqlen_q, made.seqlen_k, lists, canonical=True).to(device)


def count_pairs(
    pattern: Pattern,
    seqlen_q: int,
    seqlen_k: int | None = None,
    *,
    batch: int = 1,
    heads: int = 1,
) -> Tensor:
    """int64 (blocks,): visible pairs of each block of 64 queries, of all sequences and heads that
    the pattern tells apart together.

    As long as `Pattern.build` takes, without its memory. ValueError for sizes that do not fit.
    """
    made = _checked(pattern, seqlen_q, seqlen_k, batch, heads, _CPU)
    pairs = _ordinary(torch.zeros(num_blocks(made.seqlen_q), dtype=torch.int64, device=_CPU))
    lowered = pattern.lower(made)
    backends.load("cpu").module.count_pairs(
        lowered,
        made.seqlen_q,
        made.seqlen_k,
        *_lists_of(pattern, made),
        pairs.data_ptr(),
        _answering(made),
    )
    return pairs


def _checked(
    pattern: Pattern,
    seqlen_q: int,
    seqlen_k: int | None,
    batch: int,
    heads: int,
    device: torch.device,
) -> Build:
    seqlen_q = checked_seqlen("seqlen_q", seqlen_q)
    seqlen_k = seqlen_q if seqlen_k is None else checked_seqlen("seqlen_k", seqlen_k)
    batch = _count("batch", batch, (leaf.batch for leaf in pattern.leaves()))
    heads = _count("heads", heads, (leaf.heads for leaf in pattern.leaves()))
    return Build(seqlen_q, seqlen_k, batch, heads, device)


def _count(name: str, value: Any, of_leaves: Iterable[int]) -> int:
    count = as_int(name, value)
    if not 1 <= count <= _MAX_COUNT:
        raise ValueError(f"{name} must be from 1 to {_MAX_COUNT}, got {count}")
    for own in of_leaves:
        if own not in (1, count):
            raise ValueError(f"{name} must be {own}, as the pattern has it, got {count}")
    return count


def _lists_of(pattern: Pattern, made: Build) -> tuple[int, int]:
    """Batches and heads that get lists of their own."""
    batch = made.batch if pattern.varies_by_batch(made) else 1
    heads = made.heads if pattern.varies_by_head(made) else 1
    return batch, heads


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor, if native code can write to it."""
    if not is_ordinary(tensor):
        raise RuntimeError(
            "a mask is made of values: build it outside of torch.compile, FakeTensorMode and "
            "torch.func"
        )
    return tensor


def _native(pattern: Pattern, made: Build) -> Lists:
    lowered = pattern.lower(made)
    batch, heads = _lists_of(pattern, made)
    shape = (batch, heads, num_blocks(made.seqlen_q) + 1)
    row_offsets = _ordinary(torch.empty(shape, dtype=torch.int64, device=_CPU))
    lists: list[Tensor] = []

    def allocate(num_entries: int, num_tiles: int) -> tuple[int, ...]:
        for shape, dtype in (
            ((num_entries,), torch.int32),
            ((num_entries,), torch.int32),
            ((num_tiles, BLOCK), torch.int64),
        ):
            lists.append(torch.empty(shape, dtype=dtype, device=_CPU))
        return tuple(tensor.data_ptr() for tensor in lists)

    backends.load("cpu").module.build_mask(
        lowered,
        made.seqlen_q,
        made.seqlen_k,
        batch,
        heads,
        row_offsets.data_ptr(),
        allocate,
        _answering(made),
    )
    return Lists(row_offsets, *lists)


def _answering(made: Build) -> Callable[..., None]:
    """What native code calls for the parts of a pattern that it cannot evaluate."""

    def answer(index: int, *blocks_and_tiles: memoryview) -> None:
        *blocks, tiles = blocks_and_tiles
        words = torch.frombuffer(tiles, dtype=torch.int64).view(-1, BLOCK)
        batch, head, row, col = (torch.frombuffer(x, dtype=torch.int32) for x in blocks)
        for begin in range(0, words.shape[0], _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            words[some] = _evaluated(
                made, made.unknown[index], batch[some], head[some], row[some], col[some]
            )

    return answer


@torch.no_grad()
def _evaluated(
    made: Build, unknown: Unknown, batch: Tensor, head: Tensor, row: Tensor, col: Tensor
) -> Tensor:
    """int64 (blocks, 64): the words of these blocks. Pairs outside the lengths are asked as the
    last ones inside; the bits of those do not count."""
    inside = torch.arange(BLOCK, device=unknown.device)

    def indices(blocks: Tensor, seqlen: int) -> Tensor:
        first = blocks.to(unknown.device, torch.int64)[:, None] * BLOCK
        return (first + inside).clamp_(max=seqlen - 1)

    pairs = unknown.pairs(
        batch.to(unknown.device, torch.int64)[:, None, None],
        head.to(unknown.device, torch.int64)[:, None, None],
        indices(row, made.seqlen_q)[:, :, None],
        indices(col, made.seqlen_k)[:, None, :],
    )
    return pack(pairs.expand(row.numel(), BLOCK, BLOCK)).to(_CPU)

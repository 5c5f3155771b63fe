"""The patterns that are measured, as flash_attn2 and as FlexAttention take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attn2 import masks
from flash_attn2.masks import Pattern

_BLOCK = 64
_MEAN_DOCUMENT = 1024

# Which pairs are visible: mask_mod(batch, head, query, key) of FlexAttention.
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Sparsity(NamedTuple):
    """One mask, said twice."""

    pattern: Pattern
    mask_mod: MaskMod


def _bigbird(seqlen: int, device: str) -> Sparsity:
    """64 global tokens, 128 keys to each side, three random blocks."""
    pattern = masks.bigbird()
    chosen = _listed(masks.random_blocks(3, seed=0), seqlen).to(device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (q - k <= 128) & (k - q <= 128)
        return (q < 64) | (k < 64) | near | chosen[q // _BLOCK, k // _BLOCK]

    return Sparsity(pattern, mask_mod)


def _longformer(seqlen: int, device: str) -> Sparsity:
    """One global token, 256 keys to each side."""
    del seqlen, device

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q < 1) | (k < 1) | ((q - k <= 256) & (k - q <= 256))

    return Sparsity(masks.longformer(), mask_mod)


def _documents(seqlen: int, device: str) -> Sparsity:
    """Documents of random lengths, packed into one sequence."""
    lengths = -_MEAN_DOCUMENT * torch.rand(seqlen // 32 + 1, generator=_generator()).log()
    ends = (lengths.int() + 16).cumsum(0)
    ids = torch.searchsorted(ends, torch.arange(seqlen), right=True).int()
    of = ids.to(device)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return of[q] == of[k]

    return Sparsity(masks.documents(ids), mask_mod)


def _prefix(seqlen: int, device: str) -> Sparsity:
    """Causal, but for a quarter that all queries see."""
    del device
    length = seqlen // 4

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < length) | (k <= q)

    return Sparsity(masks.prefix(length) | masks.causal(), mask_mod)


def _random(share: float) -> Callable[[int, str], Sparsity]:
    """Blocks of 64 x 64 pairs, each visible with this probability."""

    def build(seqlen: int, device: str) -> Sparsity:
        blocks = -(-seqlen // _BLOCK)
        listed = torch.rand(blocks, blocks, generator=_generator()) < share
        chosen = listed.to(device)

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return chosen[q // _BLOCK, k // _BLOCK]

        return Sparsity(masks.blocks(listed[None, None], _BLOCK), mask_mod)

    return build


PATTERNS: Mapping[str, Callable[[int, str], Sparsity]] = {
    "bigbird": _bigbird,
    "longformer": _longformer,
    "documents": _documents,
    "prefix-lm": _prefix,
    "random-5": _random(0.05),
    "random-10": _random(0.1),
    "random-50": _random(0.5),
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _listed(pattern: Pattern, seqlen: int) -> Tensor:
    """Which blocks it lists, bool (blocks, blocks)."""
    mask = pattern.build(seqlen, device="cpu")
    listed, _ = block_states(mask)
    return listed


def block_states(mask: masks.BlockMask) -> tuple[Tensor, Tensor]:
    """Which blocks of a mask for all heads are listed, and which of them in full: two bool tensors
    (blocks of queries, blocks of keys) in host memory."""
    shape = -(-mask.seqlen_q // _BLOCK), -(-mask.seqlen_k // _BLOCK)
    listed, full = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for index, row in enumerate(mask.rows()):
        cols = row.cols.cpu().long()
        listed[index, cols] = True
        full[index, cols] = row.full.cpu()
    return listed, full

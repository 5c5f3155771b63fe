"""Block-sparse attention as an example: BigBird's mask in blocks of 64 (`masks.bigbird()`)."""

from __future__ import annotations

import functools
from dataclasses import replace

from flash_attn2 import masks
from flash_attn2.io import listed, memory
from flash_attn2.io.counts import Pass
from flash_attn2.io.needs import Needs, needs_of
from flash_attn2.io.problem import Attention
from flash_attn2.masks import BlockMask

# As `has_small_tile` of `csrc/sm80/tiles.h` has it.
_SMALL_WIDTH = 256
_LARGE_SMEM_BYTES = 160 * 2**10


@functools.lru_cache(maxsize=16)
def mask_of(problem: Attention) -> BlockMask:
    """Global tokens, a window and random blocks, and of these the causal part if the problem is."""
    pattern = masks.bigbird()
    if problem.causal:
        pattern = pattern & masks.causal()
    return pattern.build(problem.seqlen, device="cpu")


def under_a_mask(problem: Attention) -> Attention:
    """The problem as the kernels see it: its mask says all."""
    return replace(problem, causal=False)


def serves(problem: Attention) -> bool:
    """Whether there are kernels under block masks: of the widest heads, not on every device."""
    wide = max(problem.head_dim, problem.width_v) > _SMALL_WIDTH
    return not wide or problem.device.smem_per_block >= _LARGE_SMEM_BYTES


def forward(problem: Attention) -> Pass:
    return listed.forward(under_a_mask(problem), mask_of(problem))


def backward(problem: Attention) -> Pass:
    return listed.backward(under_a_mask(problem), mask_of(problem))


def needs(problem: Attention) -> Needs:
    return needs_of(under_a_mask(problem), mask_of(problem))


def peak_bytes(problem: Attention) -> int:
    return memory.listed(under_a_mask(problem), mask_of(problem))

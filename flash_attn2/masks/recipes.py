"""Patterns that are known by a name."""

from __future__ import annotations

from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.leaves import global_tokens as tokens_of
from flash_attn2.masks.leaves import random_blocks as blocks_of
from flash_attn2.masks.leaves import window as window_of
from flash_attn2.masks.pattern import Pattern

__all__ = ["bigbird", "longformer"]


def bigbird(
    *,
    global_tokens: int | Tensor = 64,
    window: int = 128,
    random_blocks: int = 3,
    block: int = BLOCK,
    seed: int = 0,
    heads: int = 1,
) -> Pattern:
    """BigBird (Zaheer et al. 2020): global tokens, a window of so many keys to each side, and for
    each block of queries so many random blocks of keys.

    The arguments are those of `global_tokens`, `window` (to both sides) and `random_blocks`.
    """
    chosen = blocks_of(random_blocks, block=block, seed=seed, heads=heads)
    return tokens_of(global_tokens) | window_of(window, window) | chosen


def longformer(*, window: int = 256, global_tokens: int | Tensor = 1) -> Pattern:
    """Longformer (Beltagy et al. 2020): a window of so many keys to each side, and global tokens.

    The arguments are those of `window` (to both sides) and `global_tokens`. The `attention_window`
    of other implementations counts both sides: it is 2 * window.
    """
    return window_of(window, window) | tokens_of(global_tokens)

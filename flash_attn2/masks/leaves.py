"""Patterns that are rules: windows, prefixes, global tokens, random blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int
from flash_attn2._impl.problem import BLOCK, MAX_SEQLEN
from flash_attn2.masks.arguments import checked_block, integers, truths
from flash_attn2.masks.pattern import Build, Leaf, shape_of

__all__ = ["causal", "global_tokens", "prefix", "random_blocks", "window"]

_MAX_SEED = 2**64 - 1


# Windows


def causal() -> Window:
    """Keys up to the diagonal, which is aligned to the bottom-right corner: query i sees keys
    j <= i + seqlen_k - seqlen_q."""
    return Window(-1, 0)


def window(left: int | None, right: int | None) -> Window:
    """Keys from `left` before to `right` behind the diagonal, both included; None or -1: no bound.

    The diagonal of query i is key i + seqlen_k - seqlen_q, as for `window_size`. TypeError for what
    is not an int, ValueError below -1.
    """
    return Window(_side("left", left), _side("right", right))


def _side(name: str, value: Any) -> int:
    keys = -1 if value is None else as_int(name, value)
    if keys < -1:
        raise ValueError(f"{name} must be at least -1 (no bound), got {keys}")
    return min(keys, 2 * MAX_SEQLEN)  # beyond all keys


@dataclass(frozen=True, eq=False, repr=False)
class Window(Leaf):
    left: int
    right: int

    def lower(self, build: Build) -> dict[str, Any]:
        return {"kind": "window", "left": self.left, "right": self.right}

    def __repr__(self) -> str:
        if (self.left, self.right) == (-1, 0):
            return "causal()"
        return f"window({self.left}, {self.right})"


# Prefixes and global tokens


def prefix(n: int | Tensor | Sequence[int]) -> Prefix:
    """All queries see the first n keys: one number, or one for each sequence, an integer tensor
    (batch,) or a list.

    TypeError for other types, ValueError for negative numbers and other shapes.
    """
    if isinstance(n, (list, tuple)):
        lengths = tuple(as_int("n", x) for x in n)
    elif isinstance(n, Tensor) and n.ndim == 1:
        lengths = tuple(integers("n", n).tolist())
    else:
        lengths = (as_int("n", n),)
    if not lengths:
        raise ValueError("n must have a number for each sequence, got none")
    if min(lengths) < 0:
        raise ValueError(f"n must not be negative, got {min(lengths)}")
    return Prefix(tuple(min(x, MAX_SEQLEN) for x in lengths))


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Leaf):
    lengths: tuple[int, ...]

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def lower(self, build: Build) -> dict[str, Any]:
        ends = torch.tensor(self.lengths, device="cpu").clamp(max=build.seqlen_k)
        bounds = torch.stack([torch.zeros_like(ends), ends], -1).int()
        offsets = torch.arange(len(self.lengths) + 1, device="cpu")
        return _ranges(build, "keys", bounds, offsets)

    def __repr__(self) -> str:
        return f"prefix({self.lengths[0] if self.batch == 1 else list(self.lengths)})"


def global_tokens(tokens: int | Tensor) -> GlobalTokens:
    """Tokens that see all keys and that all queries see: the first ones, so many, or where a bool
    tensor (seqlen_k,) is True.

    Token t is key t and the query that stands on its diagonal, t + seqlen_q - seqlen_k. TypeError
    for other types, ValueError for a negative number and other shapes.
    """
    if isinstance(tokens, Tensor) and tokens.ndim > 0:
        flags = truths("tokens", tokens)
        if flags.ndim != 1:
            raise ValueError(f"tokens must have shape (seqlen_k,), got {tuple(flags.shape)}")
        return GlobalTokens(flags.to("cpu", copy=True))
    count = as_int("tokens", tokens)
    if count < 0:
        raise ValueError(f"tokens must not be negative, got {count}")
    return GlobalTokens(count)


@dataclass(frozen=True, eq=False, repr=False)
class GlobalTokens(Leaf):
    tokens: int | Tensor

    def lower(self, build: Build) -> dict[str, Any]:
        keys = self._ranges(build.seqlen_k)
        offset = build.seqlen_q - build.seqlen_k
        queries = (keys + offset).clamp(min=0)
        queries = queries[queries[:, 1] > queries[:, 0]]
        parts = (
            _ranges(build, kind, bounds.int(), torch.tensor([0, len(bounds)], device="cpu"))
            for kind, bounds in (("keys", keys), ("queries", queries))
        )
        return {"kind": "or", "operands": tuple(parts)}

    def _ranges(self, seqlen: int) -> Tensor:
        """int64 (ranges, 2) of tokens, ascending and apart."""
        if isinstance(self.tokens, int):
            return torch.tensor([[0, min(self.tokens, seqlen)]], device="cpu")
        if self.tokens.shape[0] != seqlen:
            raise ValueError(
                f"seqlen_k must be {self.tokens.shape[0]}, as global_tokens has it, got {seqlen}"
            )
        zero = torch.zeros(1, dtype=torch.int8, device="cpu")
        steps = torch.cat([zero, self.tokens.to(torch.int8), zero]).diff()
        return torch.stack([(steps == 1).nonzero(), (steps == -1).nonzero()], 1)[..., 0]

    def __repr__(self) -> str:
        tokens = self.tokens if isinstance(self.tokens, int) else shape_of(self.tokens)
        return f"global_tokens({tokens})"


def _ranges(build: Build, kind: str, bounds: Tensor, offsets: Tensor) -> dict[str, Any]:
    return {
        "kind": kind,
        "bounds": build.address(bounds.contiguous()),
        "offsets": build.address(offsets),
        "batch": offsets.numel() - 1,
    }


# Random blocks


def random_blocks(per_row: int, *, block: int = BLOCK, seed: int, heads: int = 1) -> RandomBlocks:
    """Each block of queries sees `per_row` blocks of keys, different ones, or all if there are no
    more. Every choice is equally likely.

    block is the number of queries and keys of a block, a multiple of 64. A choice depends on seed
    (from 0 to 2**64 - 1), head, block of queries and number of key blocks alone, and is the same on
    every machine and in every release. heads > 1: as many heads choose for themselves.
    """
    count = as_int("per_row", per_row)
    if not 0 <= count <= MAX_SEQLEN:
        raise ValueError(f"per_row must be from 0 to {MAX_SEQLEN}, got {count}")
    chosen_by = as_int("seed", seed)
    if not 0 <= chosen_by <= _MAX_SEED:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, got {chosen_by}")
    num_heads = as_int("heads", heads)
    if not 1 <= num_heads < 2**31:
        raise ValueError(f"heads must be at least 1, got {num_heads}")
    return RandomBlocks(count, checked_block("block", block), chosen_by, num_heads)


@dataclass(frozen=True, eq=False, repr=False)
class RandomBlocks(Leaf):
    per_row: int
    block: int
    seed: int
    own_heads: int

    @property
    def heads(self) -> int:
        return self.own_heads

    def lower(self, build: Build) -> dict[str, Any]:
        return {
            "kind": "random_blocks",
            "per_row": self.per_row,
            "block": self.block,
            "seed": self.seed,
            "heads": self.own_heads,
        }

    def __repr__(self) -> str:
        block = f", block={self.block}" if self.block != BLOCK else ""
        heads = f", heads={self.own_heads}" if self.own_heads > 1 else ""
        return f"random_blocks({self.per_row}{block}, seed={self.seed}{heads})"

"""Patterns: what a mask is, before it has lengths. They combine with `&`, `|` and `~`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from flash_attn2.masks.block_mask import BlockMask

__all__ = ["Pattern"]

# A pattern is gone through by recursion, here and in csrc/masks.
_MAX_DEPTH = 200

Evaluator: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Index tensors batch, head, query, key that broadcast -> bool pairs, on the evaluator's device."""


class Unknown(NamedTuple):
    """A part of a pattern that native code cannot evaluate."""

    pairs: Evaluator
    device: torch.device


@dataclass
class Build:
    """A mask that is being built: its sizes, and what native code needs of a pattern for it."""

    seqlen_q: int
    seqlen_k: int
    batch: int
    heads: int
    device: torch.device
    unknown: list[Unknown] = field(default_factory=list)
    """In the order in which the native pattern has them, from the left."""
    _kept: list[Tensor] = field(default_factory=list)

    def address(self, tensor: Tensor) -> int:
        """Of a tensor in host memory, which is kept as long as this is."""
        self._kept.append(tensor)
        return tensor.data_ptr()


class Pattern(ABC):
    """Which keys each query sees, whatever the lengths. Immutable; made by the functions of
    `flash_attn2.masks`.

    `a & b` shows what both show, `a | b` what one of them shows, `~a` what a does not. Patterns are
    equal if they are made in the same way of equal parts; equal ones build equal masks.
    """

    __slots__ = ()

    @property
    def batch(self) -> int:
        """Sequences that it tells apart; 1: none."""
        return 1

    @property
    def heads(self) -> int:
        """Heads that it tells apart; 1: none."""
        return 1

    def build(
        self,
        seqlen_q: int,
        seqlen_k: int | None = None,
        *,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str | int | None = None,
    ) -> BlockMask:
        """The mask of queries and keys of these lengths, on `device` (None: PyTorch's default).

        seqlen_k is that of the queries where it is not given. batch and heads are those of the
        call, or 1; a pattern that tells sequences or heads apart needs as many. The mask has one
        list for all of them if the pattern does not, and no `function` is in it.

        It is built on the CPU, in a time that grows with the blocks that are seen in part or whole
        by the end of it, not with all there are. ValueError for sizes that do not fit the pattern.
        """
        from flash_attn2.masks.build import build

        return build(self, seqlen_q, seqlen_k, batch=batch, heads=heads, device=device)

    # For `build`

    def varies_by_batch(self, build: Build) -> bool:
        """Whether the mask needs lists of their own for sequences."""
        return self.batch > 1

    def varies_by_head(self, build: Build) -> bool:
        """Whether the mask needs lists of their own for heads."""
        return self.heads > 1

    @abstractmethod
    def lower(self, build: Build) -> dict[str, Any]:
        """The pattern as csrc/bindings/masks.cpp reads it. ValueError for sizes that do not fit."""

    @abstractmethod
    def leaves(self) -> Iterator[Pattern]:
        """Its parts without operands, from the left."""

    @abstractmethod
    def depth(self) -> int:
        """Of nested operators."""

    # The algebra

    def __and__(self, other: Any) -> Pattern:
        return And(_operands(And, "&", self, other))

    def __rand__(self, other: Any) -> Pattern:
        return And(_operands(And, "&", other, self))

    def __or__(self, other: Any) -> Pattern:
        return Or(_operands(Or, "|", self, other))

    def __ror__(self, other: Any) -> Pattern:
        return Or(_operands(Or, "|", other, self))

    def __invert__(self) -> Pattern:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a pattern has no truth value: combine patterns with &, | and ~")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        return type(self) is type(other) and all(
            _same(a, b) for a, b in zip(_parts(self), _parts(other), strict=True)
        )

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(part) for part in _parts(self))))


@dataclass(frozen=True, eq=False, repr=False)
class Leaf(Pattern):
    """A pattern without operands."""

    def leaves(self) -> Iterator[Pattern]:
        yield self

    def depth(self) -> int:
        return 0


@dataclass(frozen=True, eq=False, repr=False)
class Not(Pattern):
    operand: Pattern

    def __post_init__(self) -> None:
        _require_shallow(self)

    @property
    def batch(self) -> int:
        return self.operand.batch

    @property
    def heads(self) -> int:
        return self.operand.heads

    def varies_by_batch(self, build: Build) -> bool:
        return self.operand.varies_by_batch(build)

    def varies_by_head(self, build: Build) -> bool:
        return self.operand.varies_by_head(build)

    def lower(self, build: Build) -> dict[str, Any]:
        return {"kind": "not", "operand": self.operand.lower(build)}

    def leaves(self) -> Iterator[Pattern]:
        return self.operand.leaves()

    def depth(self) -> int:
        return self.operand.depth() + 1

    def __invert__(self) -> Pattern:
        return self.operand

    def __repr__(self) -> str:
        inner = repr(self.operand)
        return f"~({inner})" if isinstance(self.operand, _Combination) else f"~{inner}"


@dataclass(frozen=True, eq=False, repr=False)
class _Combination(Pattern):
    operands: tuple[Pattern, ...]

    KIND = ""
    SIGN = ""

    def __post_init__(self) -> None:
        _require_shallow(self)

    @property
    def batch(self) -> int:
        return max(x.batch for x in self.operands)

    @property
    def heads(self) -> int:
        return max(x.heads for x in self.operands)

    def varies_by_batch(self, build: Build) -> bool:
        return any(x.varies_by_batch(build) for x in self.operands)

    def varies_by_head(self, build: Build) -> bool:
        return any(x.varies_by_head(build) for x in self.operands)

    def lower(self, build: Build) -> dict[str, Any]:
        return {"kind": self.KIND, "operands": tuple(x.lower(build) for x in self.operands)}

    def leaves(self) -> Iterator[Pattern]:
        return itertools.chain.from_iterable(x.leaves() for x in self.operands)

    def depth(self) -> int:
        return max(x.depth() for x in self.operands) + 1

    def __repr__(self) -> str:
        parts = (f"({x!r})" if isinstance(x, _Combination) else repr(x) for x in self.operands)
        return f" {self.SIGN} ".join(parts)


class And(_Combination):
    KIND = "and"
    SIGN = "&"


class Or(_Combination):
    KIND = "or"
    SIGN = "|"


def _operands(kind: type[_Combination], sign: str, *parts: Any) -> tuple[Pattern, ...]:
    for part in parts:
        if not isinstance(part, Pattern):
            hint = ": use masks.dense" if isinstance(part, Tensor) else ""
            raise TypeError(f"{sign} combines patterns, got {type(part).__name__}{hint}")
    nested = (part.operands if isinstance(part, kind) else (part,) for part in parts)
    return tuple(operand for operands in nested for operand in operands)


def _require_shallow(pattern: Pattern) -> None:
    if pattern.depth() > _MAX_DEPTH:
        raise ValueError(f"a pattern may be nested {_MAX_DEPTH} deep, not more")


def _parts(pattern: Pattern) -> list[Any]:
    return [getattr(pattern, part.name) for part in fields(pattern)]  # type: ignore[arg-type]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    return bool(a == b)


def _hashable(part: Any) -> Any:
    return tuple(part.shape) if isinstance(part, Tensor) else part


def shape_of(tensor: Tensor) -> str:
    """A tensor in the repr of a pattern."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

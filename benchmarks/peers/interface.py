"""What a peer is asked to compute, and what it gives to be timed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

_Ready = TypeVar("_Ready")


@dataclass(frozen=True)
class Attention:
    """One problem, as rows first.

    `q` (batch, seqlen_q, num_heads, head_dim); each of `layers` is k and v
    (batch, seqlen_k, num_heads_kv, head_dim) with the same values: calls take turns on them, so
    that keys are not in the processor's caches where there are several. With `cache`, keys and
    values are a full cache, and the last row of them is the new one, of the only query.
    """

    q: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]
    causal: bool
    threads: int
    cache: bool = False

    @property
    def num_heads(self) -> int:
        return self.q.shape[2]

    @property
    def num_heads_kv(self) -> int:
        return self.layers[0][0].shape[2]

    @property
    def scale(self) -> float:
        return float(self.q.shape[3]) ** -0.5

    @functools.cached_property
    def heads_first(self) -> list[tuple[Tensor, Tensor]]:
        """`layers` as (batch, num_heads_kv, seqlen_k, head_dim), contiguous."""
        return [(heads_first(k), heads_first(v)) for k, v in self.layers]


@dataclass(frozen=True)
class Prepared:
    """Everything is compiled, bound and in its layout: only `run` is timed."""

    run: Callable[[], Any]
    result: Callable[[], Tensor]  # of the last run, (batch, seqlen_q, num_heads, head_dim)
    precision: str  # in which it computes, as it says itself


def heads_first(rows: Tensor) -> Tensor:
    """(batch, seqlen, heads, head_dim) as (batch, heads, seqlen, head_dim), contiguous."""
    return rows.transpose(1, 2).contiguous()


def in_turns(ready: Sequence[_Ready], call: Callable[[_Ready], Any]) -> Callable[[], Any]:
    """Calls with the next of `ready`, a layer each."""
    if len(ready) == 1:
        only = ready[0]
        return lambda: call(only)
    layers = itertools.cycle(ready)
    return lambda: call(next(layers))


def aligned_bytes(size: int, alignment: int = 64) -> tuple[Tensor, int]:
    """Memory of `size` bytes: a tensor that keeps it, and its aligned address."""
    memory = torch.empty(size + alignment, dtype=torch.uint8)
    return memory, -(-memory.data_ptr() // alignment) * alignment

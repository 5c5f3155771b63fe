"""Rows for heads and back: tensors (batch, rows, heads, size) of which each rank has its rows and
all heads, or all rows and its heads.

Rows lie one rank after the other. A table says which heads each rank has; a head may be with
several, and what they send back is then summed, in the order of ranks. Tensors of one dtype go in
one all_to_all, as bytes, and nothing goes twice to a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Table = tuple[tuple[int, ...], ...]


class Parties(NamedTuple):
    """Who exchanges."""

    group: Any
    rank: int
    rows: tuple[int, ...]
    """Of each rank."""


def all_gathered(group: Any, x: Tensor) -> list[Tensor]:
    """What each rank of a group has in the place of x, which has one shape on all of them."""
    if group.size() == 1:
        return [x]
    received = [x.new_empty(x.shape) for _ in range(group.size())]
    dist.all_gather(received, x.contiguous(), group=group)
    return received


def to_heads(parties: Parties, tensors: Sequence[Tensor], tables: Sequence[Table]) -> list[Tensor]:
    """Own rows of all heads -> all rows of the own heads."""

    def part(i: int, rank: int) -> Tensor:
        return _heads(tensors[i], tables[i][rank])

    def shape(i: int, rank: int) -> tuple[int, ...]:
        batch, _, _, size = tensors[i].shape
        return batch, parties.rows[rank], len(tables[i][parties.rank]), size

    received = _by_dtype(parties, tensors, part, shape)
    return [torch.cat(parts, 1) for parts in received]


def to_rows(
    parties: Parties, tensors: Sequence[Tensor], tables: Sequence[Table], num_heads: Sequence[int]
) -> list[Tensor]:
    """All rows of the own heads -> own rows of all heads, which are so many."""
    ends = [sum(parties.rows[: rank + 1]) for rank in range(len(parties.rows))]

    def part(i: int, rank: int) -> Tensor:
        return tensors[i].narrow(1, ends[rank] - parties.rows[rank], parties.rows[rank])

    def shape(i: int, rank: int) -> tuple[int, ...]:
        batch, _, _, size = tensors[i].shape
        return batch, parties.rows[parties.rank], len(tables[i][rank]), size

    received = _by_dtype(parties, tensors, part, shape)
    return [joined(*x, dim=2) for x in zip(received, tables, num_heads, strict=True)]


def gathered(parties: Parties, part: Tensor, table: Table, num_heads: int) -> Tensor:
    """(own heads, size) -> (num_heads, size), on every rank."""
    parts = _sent(
        parties,
        [part for _ in parties.rows],
        [(len(heads), part.shape[1]) for heads in table],
    )
    return joined(parts, table, num_heads, dim=0)


def joined(parts: Sequence[Tensor], table: Table, num_heads: int, dim: int) -> Tensor:
    """The heads of all ranks along `dim`. Those of several are summed in the order of ranks, in
    float32 or float64."""
    if [head for heads in table for head in heads] == list(range(num_heads)):
        return torch.cat(list(parts), dim)
    first = parts[0]
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    shape = list(first.shape)
    shape[dim] = num_heads
    total = first.new_zeros(shape, dtype=dtype)
    for part, heads in zip(parts, table, strict=True):
        for i, head in enumerate(heads):
            total.select(dim, head).add_(part.select(dim, i))
    return total.to(first.dtype)


def _heads(x: Tensor, heads: tuple[int, ...]) -> Tensor:
    if not heads:
        return x.narrow(2, 0, 0)
    if heads == tuple(range(heads[0], heads[-1] + 1)):
        return x.narrow(2, heads[0], len(heads))
    return x[:, :, list(heads)]


def _by_dtype(parties: Parties, tensors: Sequence[Tensor], part: Any, shape: Any) -> list[Any]:
    """For each tensor what came from each rank: part(i, rank) of tensor i is sent to a rank, and
    what comes from there has shape(i, rank)."""
    received: list[Any] = [None] * len(tensors)
    ranks = range(len(parties.rows))
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        which = [i for i, x in enumerate(tensors) if x.dtype == dtype]
        sent = [torch.cat([part(i, rank).reshape(-1) for i in which]) for rank in ranks]
        shapes = [[shape(i, rank) for i in which] for rank in ranks]
        sizes = [[torch.Size(x).numel() for x in of_rank] for of_rank in shapes]
        came = _sent(parties, sent, [(sum(x),) for x in sizes])
        split = [torch.split(x, of_rank) for x, of_rank in zip(came, sizes, strict=True)]
        for place, i in enumerate(which):
            received[i] = [split[rank][place].view(shapes[rank][place]) for rank in ranks]
    return received


def _sent(
    parties: Parties, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """parts[r] goes to rank r, and what comes from it has shapes[r]."""
    if len(parts) == 1:
        return [parts[0].reshape(shapes[0])]
    first = parts[0]
    itemsize = first.element_size()
    sent = torch.cat([part.reshape(-1) for part in parts])
    counts = [torch.Size(shape).numel() for shape in shapes]
    received = sent.new_empty(sum(counts))
    dist.all_to_all_single(
        received.view(torch.uint8),
        sent.view(torch.uint8),
        [itemsize * count for count in counts],
        [itemsize * part.numel() for part in parts],
        group=parties.group,
    )
    return [x.view(shape) for x, shape in zip(torch.split(received, counts), shapes, strict=True)]

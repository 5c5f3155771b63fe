"""Problems around a KV cache, with NaN and nonsense wherever the call may not look."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import per_head_options
from support import Target, assert_lse, assert_within_rule, cumulative, lengths
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.reference import kvcache_attention_reference

CAPACITY = 320
NONSENSE = (-1, 2**31 - 1, -(2**31), 10**6)
SLIDING = {"window_size": (90, 3)}
MASKS = {"full": {}, "causal": {"causal": True}, "window": SLIDING}


@dataclass(frozen=True)
class CacheCase:
    """Three sequences, whose lengths are given by `held` and `rows_q`."""

    head_dim: int = 64
    heads: tuple[int, int] = (6, 2)
    seqlen_q: int = 3
    page_size: int | None = None
    new: str = "append"  # or none, or how it rotates: neox, interleaved, partial
    mask: str = "causal"
    modifier: str | None = None  # softcap, alibi or sink
    leftpad: bool = False
    batch_idx: bool = False
    packed: bool = False
    more_new: int = 0  # new rows that have no query
    layout: str = "contiguous"  # of the cache
    int_lengths: bool = False
    num_splits: int = 0
    float32_tables: bool = False
    head_dim_v: int | None = None  # None: as head_dim

    @property
    def widths(self) -> dict[str, int]:
        return {"k": self.head_dim, "v": self.head_dim_v or self.head_dim}

    @property
    def held(self) -> tuple[int, ...]:
        return (77, 77, 77) if self.int_lengths else (3, 130, 245)

    @property
    def rows_q(self) -> tuple[int, ...]:
        return (self.seqlen_q, 0, 2) if self.packed else (self.seqlen_q,) * 3

    @property
    def rows_new(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.new == "none" else tuple(n + self.more_new for n in self.rows_q)

    @property
    def padding(self) -> tuple[int, ...]:
        return (2, 70, 0) if self.leftpad else (0, 0, 0)

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.held, self.rows_new, strict=True)))

    def arguments(self, target: Target) -> dict[str, Any]:
        """Of flash_attn_with_kvcache and, but for num_splits, of the reference."""
        table = self.table()
        arguments: dict[str, Any] = {
            "q": self.rows(target, self.rows_q, self.heads[0], self.head_dim),
            **self.caches(target, table),
            "cache_seqlens": 77 if self.int_lengths else lengths(*self.held, device=target.device),
            "num_splits": self.num_splits,
            **self.options(target.device),
        }
        table = table.to(target.device)
        if self.page_size is not None:
            arguments["block_table"] = table
        elif self.batch_idx:
            arguments["cache_batch_idx"] = table[:, 0]
        if self.leftpad:
            arguments["cache_leftpad"] = lengths(*self.padding, device=target.device)
        if self.packed:
            arguments["cu_seqlens_q"] = cumulative(*self.rows_q, device=target.device)
        if self.new != "none":
            arguments |= self.new_arguments(target)
        return arguments

    def rows(self, target: Target, rows: Sequence[int], num_heads: int, width: int) -> Tensor:
        shape = (sum(rows),) if self.packed else (len(rows), rows[0])
        return target.tensor(*shape, num_heads, width)

    def table(self) -> Tensor:
        """Block table of the cache; without pages, of pages that are whole sequences."""
        if self.page_size is None:
            return lengths(4, 0, 2)[:, None] if self.batch_idx else lengths(0, 1, 2)[:, None]
        columns = -(-CAPACITY // self.page_size)
        used = [-(-end // self.page_size) for end in self.ends]
        pages = iter(torch.randperm(sum(used) + 3).tolist())
        nonsense = itertools.cycle(NONSENSE)
        return torch.tensor(
            [
                [next(pages if column < count else nonsense) for column in range(columns)]
                for count in used
            ],
            dtype=torch.int32,
        )

    def caches(self, target: Target, table: Tensor) -> dict[str, Tensor]:
        page_size = self.page_size or CAPACITY
        used = sum(-(-end // page_size) for end in self.ends)
        pages = 5 if self.page_size is None else used + 3
        filled = (
            self.filled(target, (pages, page_size, self.heads[1], width), table)
            for width in self.widths.values()
        )
        return dict(zip(("k_cache", "v_cache"), self.laid_out(list(filled)), strict=True))

    def laid_out(self, caches: list[Tensor]) -> list[Tensor]:
        if self.layout == "heads_outside":
            return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in caches]
        if self.layout == "interleaved":
            return list(torch.stack(caches, 3).unbind(3))
        return caches

    def filled(self, target: Target, shape: tuple[int, ...], table: Tensor) -> Tensor:
        cache = torch.full(shape, torch.nan, dtype=target.dtype)
        for pages, begin, end in zip(table, self.padding, self.held, strict=True):
            position = torch.arange(begin, end)
            place = pages[position // shape[1]].long(), position % shape[1]
            cache[place] = torch.randn(len(position), *shape[2:]).to(target.dtype)
        return cache.to(target.device)

    def new_arguments(self, target: Target) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            name: self.rows(target, self.rows_new, self.heads[1], width)
            for name, width in self.widths.items()
        }
        if self.packed and self.more_new != 0:
            cu_seqlens = cumulative(*self.rows_new, device=target.device)
            arguments["cu_seqlens_k_new"] = cu_seqlens
        if self.new != "append":
            rotary_dim = 12 if self.new == "partial" else self.head_dim
            angles = 9 * torch.rand(CAPACITY, rotary_dim // 2)
            dtype = torch.float32 if self.float32_tables else target.dtype
            arguments["rotary_cos"] = angles.cos().to(target.device, dtype)
            arguments["rotary_sin"] = angles.sin().to(target.device, dtype)
            arguments["rotary_interleaved"] = self.new == "interleaved"
        return arguments

    def options(self, device: str) -> dict[str, Any]:
        alibi = "batch" if self.modifier == "alibi" else None
        options = MASKS[self.mask] | per_head_options(
            alibi, self.modifier == "sink", 3, self.heads[0], device
        )
        return options | ({"softcap": 2.0} if self.modifier == "softcap" else {})


AXES: dict[str, tuple[Any, ...]] = {
    "page_size": (None, 1, 16, 48, 256),
    "new": ("none", "append", "neox", "interleaved", "partial"),
    "num_splits": (0, 1, 3, 128),
    "modifier": (None, "softcap", "alibi", "sink"),
    "heads": ((3, 3), (6, 2), (8, 1)),
    "seqlen_q": (1, 3, 65),
    "mask": tuple(MASKS),
    "head_dim": (64, 40, 128),
    "layout": ("contiguous", "heads_outside", "interleaved"),
    "leftpad": (False, True),
    "batch_idx": (False, True),
    "packed": (False, True),
    "more_new": (0, 2),
    "int_lengths": (False, True),
}


def possible(combination: Mapping[str, Any]) -> bool:
    paged = combination.get("page_size") is not None
    # So many splits of so many rows would take long in the emulator.
    slow = combination.get("seqlen_q") == 65 and combination.get("num_splits") == 128
    return not (paged and combination.get("batch_idx")) and not slow


def all_pairs(
    axes: Mapping[str, Sequence[Any]], possible: Callable[[Mapping[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Few combinations in which any two values of different axes meet, where they can."""
    shuffled = random.Random(0)
    missing = {
        pair
        for (a, of_a), (b, of_b) in itertools.combinations(axes.items(), 2)
        for pair in itertools.product(((a, x) for x in of_a), ((b, y) for y in of_b))
        if possible(dict(pair))
    }
    combinations = []
    while missing:
        chosen = dict(min(missing, key=repr))
        for axis in shuffled.sample(list(axes), len(axes)):
            if axis in chosen:
                continue
            candidates = [chosen | {axis: value} for value in axes[axis]]
            chosen = max(filter(possible, candidates), key=lambda x: len(missing & pairs(x, axes)))
        missing -= pairs(chosen, axes)
        combinations.append(chosen)
    return combinations


def pairs(
    combination: Mapping[str, Any], axes: Mapping[str, Any]
) -> set[tuple[tuple[str, Any], ...]]:
    items = [(axis, combination[axis]) for axis in axes if axis in combination]
    return set(itertools.combinations(items, 2))


def bits(x: Tensor) -> Tensor:
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(integer)


def check_kvcache(**arguments: Any) -> tuple[Tensor, Tensor]:
    """out and lse within the rule; the caches, and scales of 8 bits, as the reference leaves them,
    the rest as it was."""
    refer = {k: v for k, v in arguments.items() if k not in ("num_splits", "max_seqlen_q")}
    exact, low = (
        kvcache_attention_reference(**refer, dtype=dtype) for dtype in (torch.float64, None)
    )
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    out, lse = flash_attn_with_kvcache(**arguments, return_softmax_lse=True)
    written = ("k_cache", "v_cache", "k_descale", "v_descale")
    for name in before.keys() - set(written):
        torch.testing.assert_close(arguments[name], before[name], rtol=0, atol=0, equal_nan=True)
    for name, expected in zip(written, exact[2:], strict=False):
        assert torch.equal(bits(arguments[name]), bits(expected)), f"{name} holds something else"
    if out.is_cuda and "cu_seqlens_q" in arguments:  # rows of no sequence are unspecified there
        out[arguments["cu_seqlens_q"][-1] :] = 0
        lse[:, arguments["cu_seqlens_q"][-1] :] = -torch.inf
    assert out.dtype == arguments["q"].dtype
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1], arguments.get("softcap", 0.0))
    return out, lse

"""Which heads a rank computes where heads are divided: any number of ranks, even or not."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple


class HeadShare(NamedTuple):
    """Heads of one rank."""

    begin: int
    """The first query head."""
    end: int
    """Behind the last one."""
    kv: tuple[int, ...]
    """The KV heads that its call gets, each for as many query heads; a head may come several times
    in a row, where the share ends in the midst of its group."""

    @property
    def size(self) -> int:
        """Query heads."""
        return self.end - self.begin

    @property
    def different_kv(self) -> tuple[int, ...]:
        """KV heads, each once: what has to be sent to the rank."""
        return tuple(dict.fromkeys(self.kv))


def head_shares(num_heads: int, num_heads_kv: int, ranks: int) -> tuple[HeadShare, ...]:
    """Query heads one after the other, as many on each rank, or one more. Ranks beyond num_heads
    have none."""
    group = num_heads // num_heads_kv
    bounds = [rank * num_heads // ranks for rank in range(ranks + 1)]
    return tuple(
        HeadShare(begin, end, _kv_heads(begin, end, group))
        for begin, end in itertools.pairwise(bounds)
    )


def _kv_heads(begin: int, end: int, group: int) -> tuple[int, ...]:
    if begin == end:
        return ()
    if begin // group == (end - 1) // group:
        return (begin // group,)
    step = math.gcd(group, begin, end)  # query heads that share a KV head of the call
    return tuple(head // group for head in range(begin, end, step))

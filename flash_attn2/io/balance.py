"""How evenly the CTAs of a launch fill a device."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from flash_attn2.io.plans import Tiles


def schedule(blocks: Sequence[int], pairs: int, section: int) -> Iterable[int]:
    """Costs of the CTAs as they start: pairs of (batch, head) in sections, blocks in this order."""
    for first in range(0, pairs, section):
        for cost in blocks:
            yield from [cost] * min(section, pairs - first)


def makespan_over_ideal(costs: Iterable[int], slots: int) -> float:
    """Time until the last CTA ends over the least possible, where work divides at will; 1 without
    any work.

    A CTA starts where and when another ends, which is what hardware does; `slots` run at once.
    """
    ends = [0] * slots
    total = 0
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
        total += cost
    return max(ends) * slots / total if total else 1.0


def lengths(blocks: Sequence[Tiles]) -> list[int]:
    return [end - begin for begin, end in blocks]


def waves_over_ideal(ctas: int, slots: int) -> float:
    """The same of CTAs that are all alike: they come in whole waves."""
    return -(-ctas // slots) * slots / ctas

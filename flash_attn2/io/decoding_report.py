"""Decoding over caches of several kinds as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flash_attn2.io import split
from flash_attn2.io.decoding import Decoding
from flash_attn2.io.report import human, markdown
from flash_attn2.io.split_plan import split_plan

LEGEND = """\
Decoding: one query of each sequence over a dense cache, by the split kernel and, where CTAs leave
splits, the one that adds them up. *Least* is queries, results, and the cache with its scales once;
values that are columns of the keys count once. *Asked* and *perfect L2* as above, over that; what
CTAs leave of splits is written and read. `io --decode` shows other shapes."""


def _pages_problems() -> list[Decoding]:
    latents: dict[str, Any] = {
        "heads": 128,
        "heads_kv": 1,
        "head_dim": 576,
        "head_dim_v": 512,
        "shared": True,
    }
    return [
        problem
        for batch in (1, 8, 64)
        for problem in (
            Decoding(8192, batch),
            Decoding(8192, batch, scales="sequence"),
            Decoding(8192, batch, scales="row"),
            Decoding(8192, batch, heads=8, heads_kv=4, head_dim=512),
            Decoding(8192, batch, heads=16, heads_kv=16, head_dim=192, head_dim_v=128),
            Decoding(8192, batch, **latents),
            Decoding(8192, batch, **latents, scales="row"),
        )
    ]


PAGES_PROBLEMS = _pages_problems()


def table(problems: Sequence[Decoding]) -> str:
    header = ("keys", "batch", "cache", "least", "asked", "perfect L2", "splits", "CTAs", "MMAs")
    return markdown(header, [_cells(problem) for problem in problems])


def _cells(problem: Decoding) -> tuple[str, ...]:
    plan, found = split_plan(problem), split.forward(problem)
    return (
        str(problem.seqlen_k),
        str(problem.batch),
        problem.cache,
        human(problem.least_bytes),
        f"{found.memory.asked / problem.least_bytes:.3f}",
        f"{found.memory.distinct / problem.least_bytes:.3f}",
        str(plan.splits),
        str(plan.grid),
        f"{found.mma:.3g}",
    )

"""Which keys ranks of a gather send to each other, and how many bytes these are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn2 import masks
from flash_attn2.distributed import context_plan
from flash_attn2.masks.leaves import Window


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(1, {}), (3, {}), (8, {"chunk": 90}), ((3, 2), {"balance": "zigzag"})],
    ids=str,
)
@pytest.mark.parametrize(
    "pattern",
    [
        *(masks.window(100, 0), masks.window(0, 70), masks.window(30, None), masks.causal(), None),
        masks.documents(torch.arange(1000) // 140) & masks.causal(),
        masks.random_blocks(1, seed=1, heads=2) | masks.window(9, 0),
        masks.prefix([3, 200]) & ~masks.window(None, 900),
        masks.causal() & ~masks.causal(),
    ],
    ids=repr,
)
def test_keys_that_a_gather_needs(
    pattern: masks.Pattern | None, ranks: Any, options: dict[str, Any]
) -> None:
    """Counted in the pattern's pairs."""
    plan = context_plan(
        *(ranks, 1000), pattern=pattern, num_heads=6, num_heads_kv=2, scheme="gather", **options
    )
    heads = plan.ranks.heads
    block = 1 if pattern is None or isinstance(pattern, Window) else 64
    outer = plan.ranks.outer
    rows = [
        torch.cat([plan.at(i * heads + j).positions for j in range(heads)]) for i in range(outer)
    ]
    seen = plan.pattern.build(1000, batch=plan.pattern.batch, heads=plan.pattern.heads).to_dense()
    needed = torch.stack([_blocks(seen.flatten(0, 1).any(0), own, block) for own in rows])
    assert plan.needed_keys is not None
    for rank in range(outer):
        found = [range(*x) for x in plan.needed_keys.of(rank)]
        assert [key for keys in found for key in keys] == needed[rank].nonzero().flatten().tolist()
        assert all(a.stop < b.start for a, b in itertools.pairwise(found))  # no two that touch
    report = plan.report(head_dim=1, dtype=torch.float32)
    kv = torch.tensor([len(share.different_kv) for share in plan.head_shares])
    sent = torch.stack([needed[:, own].sum() - needed[i, own].sum() for i, own in enumerate(rows)])
    got = torch.stack([needed[i].sum() - needed[i, own].sum() for i, own in enumerate(rows)])
    forward, backward = report.traffic.outer_forward, report.traffic.outer_backward
    assert forward.tolist() == (8 * sent[:, None] * kv).flatten().tolist()
    assert backward.tolist() == (8 * (sent + got)[:, None] * kv).flatten().tolist()


def _blocks(seen: Tensor, rows: Tensor, block: int) -> Tensor:
    """bool (keys,): in blocks that some row in a block of these rows sees."""
    size = -(-seen.shape[0] // block) * block
    whole = torch.zeros(size, size, dtype=torch.bool)
    whole[: seen.shape[0], : seen.shape[1]] = seen
    by_blocks = whole.unflatten(0, (-1, block)).unflatten(2, (-1, block)).any(3).any(1)
    found = by_blocks[(rows // block).unique()].any(0)
    return found.repeat_interleave(block)[: seen.shape[1]]

"""FLOPs of context parallelism, as torch counts them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from flash_attn2.distributed import context_attention, context_plan


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_rank_counts_its_heads_of_the_whole_sequence(group: dist.ProcessGroup) -> None:
    plan = context_plan(group, 10, num_heads=4, num_heads_kv=2, scheme="heads")
    q, k, v = (
        torch.randn(3, 10, heads, width, requires_grad=True)
        for heads, width in ((4, 16), (2, 16), (2, 8))
    )
    bias = torch.randn(10, 10, requires_grad=True)
    scores = 3 * 4 * 10 * 10
    with FlopCounterMode(display=False) as forward:
        out = context_attention(q, k, v, plan, bias=bias)
    assert forward.get_total_flops() == 2 * (16 + 8) * scores
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    of_bias = 2 * (16 + 8) * scores
    assert backward.get_total_flops() == 2 * (3 * 16 + 2 * 8) * scores + of_bias

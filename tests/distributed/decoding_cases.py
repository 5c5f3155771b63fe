"""What the ranks of `test_sharded_decoding` run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.distributed import sharded_kvcache_attention

EXAMPLE = Path(__file__).parents[2] / "examples" / "sharded_decoding.py"


def merged(group: Any) -> None:
    """Caches of different lengths, none at all on the last rank, in every dtype."""
    draw = torch.Generator().manual_seed(1)
    lengths = [0 if r == group.size() - 1 else 30 + 7 * r for r in range(group.size())]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        q = torch.randn(3, 2, 4, 16, generator=draw).to(dtype)
        k, v = torch.randn(2, 3, sum(lengths), 2, 16, generator=draw).to(dtype)
        sink = torch.randn(4, generator=draw)
        begin = sum(lengths[: group.rank()])
        own = [x[:, begin : begin + lengths[group.rank()]] for x in (k, v)]
        caches = [torch.cat([x, torch.full_like(k[:, :9], torch.nan)], 1) for x in own]
        options: dict[str, Any] = {"softmax_scale": 0.3, "softcap": 4.0, "sink": sink}
        out, lse = sharded_kvcache_attention(
            q, *caches, group, cache_seqlens=lengths[group.rank()], return_lse=True, **options
        )
        expected: Any = flash_attn_func(q, k, v, return_lse=True, **options)
        torch.testing.assert_close(out, expected[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)
        assert out.dtype == dtype
        assert_same_everywhere(group, out)
        alone: Any = sharded_kvcache_attention(
            q, *caches, group, cache_seqlens=lengths[group.rank()], **options
        )
        assert torch.equal(alone, out)
        without = sharded_kvcache_attention(
            q, *caches, group, cache_seqlens=0, **options | {"sink": None}
        )
        assert not without.any()  # type: ignore[union-attr]


def assert_same_everywhere(group: Any, x: Tensor) -> None:
    found = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(found, x, group=group)
    assert all(torch.equal(x, y) for y in found)


def errors(group: Any) -> None:
    x = torch.zeros(1, 1, 1, 8)
    with pytest.raises(TypeError, match="group must be a ProcessGroup, got int"):
        sharded_kvcache_attention(x, x, x, 3)
    with pytest.raises(TypeError, match="has no argument 'causal'"):
        sharded_kvcache_attention(x, x, x, group, causal=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="return_lse must be a bool"):
        sharded_kvcache_attention(x, x, x, group, return_lse="no")  # type: ignore[arg-type]


def example(group: Any) -> None:
    """The group of all ranks is that of the pool's processes."""
    runpy.run_path(str(EXAMPLE))["main"](50)

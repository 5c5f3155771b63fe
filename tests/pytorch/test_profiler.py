"""What a profiler calls the calls: the ops, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import cumulative
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def dense(**options: Any) -> None:
    q = leaf(2, 5, 2, 8)
    flash_attn_func(q, q, q, **options).sum().backward()


def packed() -> None:
    q, cu = leaf(9, 2, 8), cumulative(4, 5)
    flash_attn_varlen_func(q, q, q, cu, cu, 5, 5).sum().backward()


def nested() -> None:
    offsets = torch.tensor([0, 4, 9])
    q: Any = torch.nested.nested_tensor_from_jagged(leaf(9, 2, 8), offsets)
    out: Any = flash_attn_func(q, q, q)
    out.values().sum().backward()


def cached(**new: Any) -> None:
    q, cache = torch.randn(2, 1, 2, 8), torch.randn(2, 16, 2, 8)
    flash_attn_with_kvcache(q, cache, cache.clone(), cache_seqlens=3, **new)


NEW = torch.randn(2, 1, 2, 8)
CALLS: dict[str, tuple[Callable[[], None], set[str]]] = {
    "dense": (dense, {"forward", "backward"}),
    "biases": (lambda: dense(bias=leaf(5, 5)), {"forward", "backward", "bias_backward"}),
    "packed": (packed, {"varlen_forward", "varlen_backward"}),
    "nested": (nested, {"varlen_forward", "varlen_backward"}),
    "cached": (cached, {"kvcache_forward"}),
    "appended": (lambda: cached(k=NEW, v=NEW), {"kvcache_append_forward"}),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("call", CALLS)
def test_names(call: str) -> None:
    run, expected = CALLS[call]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    seen = {x.name for x in profile.events() if x.name.startswith("flash_attn2::")}
    assert seen == {f"flash_attn2::{x}" for x in expected}

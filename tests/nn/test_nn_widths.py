"""Layers and page caches with values that are not as wide as keys."""

from __future__ import annotations

import copy

import pytest
import torch
from support import cumulative
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache
from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import Attention, RotaryEmbedding

pytestmark = pytest.mark.parametrize(("head_dim", "head_dim_v"), [(24, 16), (12, 40)])


def layer(head_dim: int, head_dim_v: int) -> Attention:
    return Attention(
        *(20, 4, 2, head_dim), head_dim_v=head_dim_v, causal=True, rotary=RotaryEmbedding(8)
    )


def test_layer(head_dim: int, head_dim_v: int) -> None:
    attention = layer(head_dim, head_dim_v)
    assert attention.qkv_proj.weight.shape == (6 * head_dim + 2 * head_dim_v, 20)
    assert attention.out_proj.weight.shape == (20, 4 * head_dim_v)
    assert f"head_dim={head_dim}, head_dim_v={head_dim_v}" in repr(attention)
    x = torch.randn(2, 9, 20, requires_grad=True)
    q, k, v = attention.project(x)
    assert (q.shape, k.shape) == ((2, 9, 4, head_dim), (2, 9, 2, head_dim))
    values = attention.qkv_proj(x)[..., 6 * head_dim :].unflatten(-1, (2, head_dim_v))
    assert torch.equal(v, values)
    out = attention(x)
    expected = attention.out_proj(flash_attn_func(q, k, v, causal=True).flatten(-2))
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert x.grad is not None
    packed = attention(x.detach().flatten(0, 1), cu_seqlens=cumulative(9, 9))
    torch.testing.assert_close(packed, out.flatten(0, 1))


@torch.no_grad()
def test_layer_over_a_cache(head_dim: int, head_dim_v: int) -> None:
    attention = layer(head_dim, head_dim_v)
    cache = PagedKVCache(1, 8, 4, 2, head_dim, head_dim_v=head_dim_v)
    x = torch.randn(1, 9, 20)
    sequence = cache.allocate()
    parts = []
    for rows in x[0].split((5, 1, 3)):
        step = cache.append([sequence], rows.shape[0])
        parts.append(attention(rows, cache=cache.layers[0], step=step))
    torch.testing.assert_close(torch.cat(parts), attention(x)[0])


def written(cache: PagedKVCache, sequence: int, k: Tensor, v: Tensor, layers: int = 2) -> Tensor:
    step = cache.append([sequence], k.shape[0])
    q = torch.ones(k.shape[0], 2, k.shape[-1])
    for caches in cache.layers[:layers]:
        out = flash_attn_with_kvcache(q, *caches, k, v, causal=True, **step._asdict())
    assert isinstance(out, Tensor)
    return out


def test_page_cache(head_dim: int, head_dim_v: int) -> None:
    """Forks, copies, what it counts, and what it watches."""
    cache = PagedKVCache(2, 8, 4, 2, head_dim, head_dim_v=head_dim_v)
    assert [x.shape[-1] for x in cache.layers[1]] == [head_dim, head_dim_v]
    assert f"head_dim={head_dim}" in repr(cache)
    assert f"head_dim_v={head_dim_v}" in repr(cache)
    assert cache.usage().bytes_total == 2 * 8 * 4 * 2 * (head_dim + head_dim_v) * 4
    sequence = cache.allocate()
    k, v = torch.randn(6, 2, head_dim), torch.randn(6, 2, head_dim_v)
    written(cache, sequence, k, v)
    twin = copy.deepcopy(cache)
    fork = cache.fork(sequence)
    more = torch.randn(1, 2, head_dim), torch.randn(1, 2, head_dim_v)
    expected = flash_attn_func(
        torch.ones(1, 1, 2, head_dim),
        *(torch.cat(x)[None] for x in zip((k, v), more, strict=True)),
    )
    for each, of in ((cache, fork), (cache, sequence), (twin, sequence)):
        torch.testing.assert_close(written(each, of, *more), expected[0])
    written(cache, fork, *more, layers=1)
    with pytest.raises(RuntimeError, match="1 of 2 layers have been written"):
        cache.append([fork], 1)

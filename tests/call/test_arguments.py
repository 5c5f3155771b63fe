"""What passes for a number, and results that are asked for by name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from support import cumulative
from torch.fx.experimental.proxy_tensor import make_fx

from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
    varlen_attention_probs,
)
from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import Attention, RotaryEmbedding


@pytest.mark.parametrize(
    "longest", [np.int64(4), torch.tensor(4), torch.tensor(4, dtype=torch.uint8)]
)
def test_longest_sequence(longest: Any) -> None:
    q, cu = torch.randn(7, 2, 16), cumulative(3, 4)
    expected = flash_attn_varlen_func(q, q, q, cu, cu, 4, 4)
    assert torch.equal(flash_attn_varlen_func(q, q, q, cu, cu, longest, longest), expected)
    qkv = torch.stack([q, q, q], 1)
    assert torch.equal(flash_attn_varlen_qkvpacked_func(qkv, cu, longest), expected)


def test_longest_sequence_need_not_be_given() -> None:
    """On the CPU it is looked up; where the call is traced, rows are a bound."""
    q, cu = torch.randn(7, 2, 16), cumulative(3, 4)
    qkv = torch.stack([q, q, q], 1)
    expected = flash_attn_varlen_func(q, q, q, cu, cu, 4, 4)
    assert torch.equal(flash_attn_varlen_func(q, q, q, cu, cu), expected)
    assert torch.equal(flash_attn_varlen_kvpacked_func(q, qkv[:, 1:], cu, cu), expected)
    assert torch.equal(flash_attn_varlen_qkvpacked_func(qkv, cu), expected)
    assert varlen_attention_probs(q, q, cu, cu).shape == (2, 2, 4, 4)
    *_, probs = flash_attn_varlen_func(q, q, q, cu, cu, dropout_p=0.1, return_attn_probs=True)
    assert probs.shape == (2, 2, 4, 4)
    table = torch.arange(4, dtype=torch.int32).view(2, 2)
    pages = torch.randn(4, 3, 2, 16)
    paged = flash_attn_varlen_func(q, pages, pages, cu, cu, 4, 4, block_table=table)
    assert torch.equal(flash_attn_varlen_func(q, pages, pages, cu, cu, block_table=table), paged)
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, q, q, cu, cu), expected)
    empty = torch.zeros(0, 2, 16)
    for lengths in ((), (0, 0)):
        none = cumulative(*lengths)
        assert flash_attn_varlen_func(empty, empty, empty, none, none).shape == (0, 2, 16)
    with pytest.raises(ValueError, match="cu_seqlens_q must not decrease"):
        flash_attn_varlen_func(q, q, q, cumulative(5, -1), cu)
    with pytest.raises(TypeError, match="cu_seqlens_q must be int32"):
        flash_attn_varlen_func(q, q, q, cu.long(), cu)


def test_longest_sequence_while_compiling() -> None:
    torch._dynamo.reset()
    q, cu = torch.randn(7, 2, 16), cumulative(3, 4)
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    longest = torch.tensor(4)
    expected = flash_attn_varlen_func(q, q, q, cu, cu, 4, 4)
    assert torch.equal(compiled(q, q, q, cu, cu, longest, longest), expected)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_lengths_while_make_fx_traces(mode: str) -> None:
    """Their values cannot be asked for."""
    q, cu = torch.randn(7, 2, 16), cumulative(3, 4)

    def attend(q: torch.Tensor, cu: torch.Tensor) -> Any:
        longest = cu.diff().max()
        cache = q[None, :5]
        return (
            flash_attn_varlen_func(q, q, q, cu, cu, longest, longest),
            flash_attn_with_kvcache(q[None], cache, cache, cache_seqlens=longest),
        )

    traced = make_fx(attend, tracing_mode=mode)(q, cu)
    torch.testing.assert_close(traced(q, cu), attend(q, cu))


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"softmax_scale": np.float32(0.5)}, {"softmax_scale": 0.5}),
        ({"softcap": Fraction(1, 2)}, {"softcap": 0.5}),
        ({"softcap": 1}, {"softcap": 1.0}),
        ({"window_size": (np.int32(2), torch.tensor(1))}, {"window_size": (2, 1)}),
        ({"causal": np.True_}, {"causal": True}),
        ({"causal": 1}, {"causal": True}),
        ({"window_size": (2**63 - 1, 0)}, {"causal": True}),
        ({"softmax_scale": 0}, {"softmax_scale": 0.0}),
    ],
)
def test_numbers(given: dict[str, Any], same: dict[str, Any]) -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 16)
    assert torch.equal(flash_attn_func(q, k, v, **given), flash_attn_func(q, k, v, **same))


def test_lse_takes_linear_memory() -> None:
    """The matrix of these would have 16 GiB."""
    q = torch.randn(1, 1, 1, 8).expand(1, 2**16, 1, 8)
    out, lse, probs = flash_attn_func(q, q, q, window_size=(3, 0), return_attn_probs=True)
    assert probs.shape == (0,)
    torch.testing.assert_close(out, q)
    assert lse.shape == (1, 1, 2**16)


def test_attention_probs() -> None:
    q, k, v = (torch.randn(2, 7, heads, 16, dtype=torch.float64) for heads in (4, 2, 2))
    options = {"causal": True, "softcap": 2.0, "sink": torch.randn(4)}
    probs = attention_probs(q.requires_grad_(), k, **options)
    out = torch.einsum("bhij,bjhd->bihd", probs, v.repeat_interleave(2, 2))
    expected = flash_attn_func(q, k, v, **options)
    torch.testing.assert_close(out, expected)
    gradient, same = (torch.autograd.grad(x.square().sum(), q)[0] for x in (out, expected))
    torch.testing.assert_close(gradient, same, rtol=1e-5, atol=1e-5)
    packed = (x.flatten(0, 1) for x in (q, k))
    cu = cumulative(7, 7)
    assert torch.equal(varlen_attention_probs(*packed, cu, cu, 7, 7, **options), probs)
    with pytest.raises(ValueError, match="k must have the head_dim of q, 16, got 8"):
        attention_probs(q, k[..., :8])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(32, 4, casual=True), "Attention has no argument 'casual': use causal"),
        (
            lambda: Attention(32, 4, num_kv_heads=2),
            "Attention has no argument 'num_kv_heads': use num_heads_kv",
        ),
        (
            lambda: RotaryEmbedding(8, interleave=True),
            "RotaryEmbedding has no argument 'interleave': use interleaved",
        ),
        (
            lambda: PagedKVCache(1, 1, 1, 1, 8, max_batch_size=1),
            "PagedKVCache has no argument 'max_batch_size': use max_batch",
        ),
        (
            lambda: attention_probs(Q, Q, is_causal=True),
            "attention_probs has no argument 'is_causal': use causal",
        ),
        (
            lambda: varlen_attention_probs(Q[0], Q[0], CU, CU, 4, 4, scale=1.0),
            "varlen_attention_probs has no argument 'scale': use softmax_scale",
        ),
    ],
)
def test_misspelt_keywords(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        call()


Q, CU = torch.randn(1, 4, 2, 8), cumulative(1, 3)
REQUIRED = {
    "forward": ("q",),
    "backward": ("q", "out", "lse"),
    "varlen_forward": ("q", "cu_seqlens_q", "cu_seqlens_k"),
    "varlen_backward": ("q", "out", "lse", "cu_seqlens_q", "cu_seqlens_k"),
    "kvcache_forward": ("q", "k_cache", "v_cache"),
    "kvcache_append_forward": ("q", "k_cache", "v_cache", "k"),
}


@pytest.mark.parametrize("name", REQUIRED)
def test_ops_name_tensors_that_are_none(name: str) -> None:
    """The dispatcher takes None for a tensor."""
    op = getattr(torch.ops.flash_attn2, name)
    packed = "varlen" in name
    values = {"Tensor": Q[0] if packed else Q, "SymInt": 4, "bool": True}
    given: dict[str, Any] = {}
    for argument in op.default._schema.arguments:
        if not argument.has_default_value() and "Optional" not in str(argument.type):
            given[argument.name] = values.get(str(argument.type), 1)
        elif not argument.has_default_value():
            given[argument.name] = None
    given |= {"k": Q[0] if packed else Q, "v": Q[0] if packed else Q} if "kv" not in name else {}
    for missing in REQUIRED[name]:
        with pytest.raises(TypeError, match=f"^{missing} must be a torch.Tensor, got NoneType"):
            op(**given | {missing: None})


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize("of", [torch._neg_view, lambda x: torch._efficientzerotensor(x.shape)])
def test_ops_write_to_memory_alone(name: str, of: Any) -> None:
    op = torch.ops.flash_attn2.kvcache_append_forward
    caches = {"k_cache": torch.randn(1, 8, 2, 8), "v_cache": torch.randn(1, 8, 2, 8)}
    before = {key: x.clone() for key, x in caches.items()}
    lengths = {"cache_seqlens": None, "cache_seqlen": 2, "seqlen_new": 4, "num_splits": 0}
    unused = ("rotary_cos", "rotary_sin", "cache_batch_idx", "cache_leftpad", "block_table")
    unused = (*unused, "cu_seqlens_q", "max_seqlen_q", "cu_seqlens_k_new")
    given = {"q": Q, "k": Q, "v": Q, "rotary_interleaved": True, "q_advances": True}
    given |= lengths | dict.fromkeys(unused) | caches
    with pytest.raises(ValueError, match=f"{name} must be memory to write to"):
        op(**given | {name: of(caches[name])})
    with pytest.raises(ValueError, match="seqlen_new must be from 0 to"):
        op(**given | {"seqlen_new": -1})
    for key, x in caches.items():
        assert torch.equal(x, before[key])
    op(**given)
    assert torch.equal(caches["k_cache"][:, 2:6], Q)

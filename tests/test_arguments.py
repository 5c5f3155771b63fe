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
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
    varlen_attention_probs,
)


@pytest.mark.parametrize(
    "longest", [np.int64(4), torch.tensor(4), torch.tensor(4, dtype=torch.uint8)]
)
def test_longest_sequence(longest: Any) -> None:
    q, cu = torch.randn(7, 2, 16), cumulative(3, 4)
    expected = flash_attn_varlen_func(q, q, q, cu, cu, 4, 4)
    assert torch.equal(flash_attn_varlen_func(q, q, q, cu, cu, longest, longest), expected)
    qkv = torch.stack([q, q, q], 1)
    assert torch.equal(flash_attn_varlen_qkvpacked_func(qkv, cu, longest), expected)


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

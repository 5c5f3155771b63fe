"""Attention.from_multihead beside the torch.nn.MultiheadAttention that it is made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flash_attn2.nn import Attention


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_results(bias: bool, causal: bool, dtype: torch.dtype) -> None:
    module = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True, dtype=dtype)
    for parameter in module.parameters():  # biases begin with zeros
        nn.init.normal_(parameter, std=0.3)
    layer = Attention.from_multihead(module, causal=causal)
    x = torch.randn(2, 9, 32, dtype=dtype)
    mask = ~torch.ones(9, 9, dtype=torch.bool).tril() if causal else None
    expected, _ = module(x, x, x, attn_mask=mask, need_weights=False)
    actual = layer(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected)
    for out in (actual, expected):
        out.sin().sum().backward()
    for ours, theirs in (
        (layer.qkv_proj.weight, module.in_proj_weight),
        (layer.qkv_proj.bias, module.in_proj_bias),
        (layer.out_proj.weight, module.out_proj.weight),
        (layer.out_proj.bias, module.out_proj.bias),
    ):
        if theirs is None:
            assert ours is None
            continue
        assert ours.data_ptr() != theirs.data_ptr()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_what_else_it_takes_over() -> None:
    module = nn.MultiheadAttention(32, 4, dropout=0.25, batch_first=True).eval()
    module.out_proj.weight.requires_grad_(False)
    layer = Attention.from_multihead(module, window_size=(3, 0), deterministic=True)
    assert (layer.dropout, layer.training, layer.deterministic) == (0.25, False, True)
    assert layer.window_size == (3, 0)
    assert [x.requires_grad for x in layer.parameters()] == [True, True, False, True]
    on_meta = nn.MultiheadAttention(32, 4, batch_first=True, device="meta")
    assert Attention.from_multihead(on_meta).qkv_proj.weight.is_meta


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "batch_first=True", {"batch_first": False}),
        (ValueError, "kdim and vdim of embed_dim, 32", {"kdim": 16}),
        (ValueError, "add_bias_kv=False", {"add_bias_kv": True}),
        (ValueError, "add_zero_attn=False", {"add_zero_attn": True}),
        (TypeError, "module must be a torch.nn.MultiheadAttention, got Linear", None),
    ],
)
def test_errors(kind: type[Exception], message: str, options: dict[str, Any] | None) -> None:
    module: Any = nn.Linear(32, 32)
    if options is not None:
        module = nn.MultiheadAttention(32, 4, **{"batch_first": True} | options)
    with pytest.raises(kind, match=message):
        Attention.from_multihead(module)

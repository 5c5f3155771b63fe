"""FlashAttention-1's schedule in the emulator: right results, and the traffic of its form."""

from __future__ import annotations

import pytest
import torch
from support import assert_lse, assert_within_rule, require_module

from flash_attn2.io import compare, flash1
from flash_attn2.io.emulate import emulator_options
from flash_attn2.io.problem import Attention
from flash_attn2.reference import attention_reference


@pytest.fixture(autouse=True)
def _emulated() -> None:
    require_module("_flash1_emulated")
    torch.manual_seed(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen", [1, 37, 256, 333])
def test_results(seqlen: int, causal: bool) -> None:
    q, k, v, grad_out = (torch.randn(2, seqlen, 2, 64).half() for _ in range(4))

    def reference(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out, lse, *_ = attention_reference(*leaves, causal=causal)
        return out, lse, *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))

    exact, low = reference(torch.float64), reference(torch.float16)
    attention = compare.Flash1(q, k, v, causal)
    with emulator_options(compare.load_flash1(), f"ctas=3,async=random,seed={seqlen}"):
        out, lse = attention.forward()
        gradients = attention.backward(grad_out)
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1])
    for name, *gradient in zip("qkv", gradients, exact[2:], low[2:], strict=True):
        assert_within_rule(f"gradient of {name}", *gradient, 3)


@pytest.mark.parametrize(
    "problem",
    [
        Attention(1024, heads=1),
        Attention(2048, heads=1, causal=True),
        Attention(256, heads=2),
        Attention(432, batch=2, heads=1, causal=True),
    ],
    ids=str,
)
def test_form(problem: Attention) -> None:
    with emulator_options(compare.load_flash1(), "races=off,poison=off"):
        counted = compare.count_flash1(problem)
    assert compare.differences(flash1.forward(problem), counted.forward) == []
    assert compare.differences(flash1.backward(problem), counted.backward) == []


def test_other_head_dims_are_refused() -> None:
    for direction in (flash1.forward, flash1.backward):
        with pytest.raises(ValueError, match="head_dim 64, got 128"):
            direction(Attention(1024, head_dim=128))

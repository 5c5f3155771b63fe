"""Standard attention in the emulator: right results, and the traffic of its form."""

from __future__ import annotations

import pytest
import torch
from support import assert_within_rule, require_module

from flash_attn2.io import compare, emulated_standard, standard
from flash_attn2.io.emulate import emulator_options
from flash_attn2.io.problem import Attention
from flash_attn2.reference import attention_reference


@pytest.fixture(autouse=True)
def _emulated() -> None:
    require_module("_standard_emulated")
    torch.manual_seed(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen", [8, 40, 256, 328])
def test_results(seqlen: int, causal: bool) -> None:
    q, k, v, grad_out = (torch.randn(2, seqlen, 2, 64).half() for _ in range(4))

    def reference(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out, *_ = attention_reference(*leaves, causal=causal)
        return out, *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))

    exact, low = reference(torch.float64), reference(torch.float16)
    attention = emulated_standard.Standard(q, k, v, causal)
    with emulator_options(emulated_standard.load(), f"ctas=3,async=random,seed={seqlen}"):
        out = attention.forward()
        gradients = attention.backward(grad_out)
    assert_within_rule("out", out, exact[0], low[0])
    for name, *gradient in zip("qkv", gradients, exact[1:], low[1:], strict=True):
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
    with emulator_options(emulated_standard.load(), "races=off,poison=off"):
        counted = compare.count_standard(problem)
    assert compare.differences(standard.forward(problem), counted.forward) == []
    assert compare.differences(standard.backward(problem), counted.backward) == []

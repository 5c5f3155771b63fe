"""Standard attention in the emulator: right results, and the traffic of its form."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support import EMULATOR_REQUIRED, assert_within_rule

from flash_attn2.io import compare, emulated_standard, standard
from flash_attn2.io.problem import Attention
from flash_attn2.reference import attention_reference


@pytest.fixture(autouse=True)
def _emulated() -> None:
    if importlib.util.find_spec("flash_attn2._standard_emulated") is None:
        if EMULATOR_REQUIRED:
            pytest.fail("flash_attn2._standard_emulated is not built")
        pytest.skip("flash_attn2._standard_emulated is not built (`make test` builds it)")
    torch.manual_seed(0)


@contextmanager
def options(text: str) -> Iterator[None]:
    module = emulated_standard.load()
    before = module.set_options(text)
    try:
        yield
    finally:
        module.set_options(before)


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
    with options(f"ctas=3,async=random,seed={seqlen}"):
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
    with options("races=off,poison=off"):
        counted = compare.count_standard(problem)
    assert compare.differences(standard.forward(problem), counted.forward) == []
    assert compare.differences(standard.backward(problem), counted.backward) == []

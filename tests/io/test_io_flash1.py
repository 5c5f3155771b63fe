"""FlashAttention-1's schedule in the emulator: right results, and the traffic of its form."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support import EMULATOR_REQUIRED, assert_lse, assert_within_rule

from flash_attn2.io import compare, flash1
from flash_attn2.io.problem import Attention
from flash_attn2.reference import attention_reference


@pytest.fixture(autouse=True)
def _emulated() -> None:
    if importlib.util.find_spec("flash_attn2._flash1_emulated") is None:
        if EMULATOR_REQUIRED:
            pytest.fail("flash_attn2._flash1_emulated is not built")
        pytest.skip("flash_attn2._flash1_emulated is not built (`make test` builds it)")
    torch.manual_seed(0)


@contextmanager
def options(text: str) -> Iterator[None]:
    module = compare.load_flash1()
    before = module.set_options(text)
    try:
        yield
    finally:
        module.set_options(before)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seqlen", [1, 37, 256, 605])
def test_results(seqlen: int, causal: bool) -> None:
    q, k, v = (torch.randn(2, seqlen, 2, 64).half() for _ in range(3))
    with options(f"ctas=3,async=random,seed={seqlen}"):
        out, lse = compare.run_flash1(q, k, v, causal)
    exact, low = (
        attention_reference(*(x.to(dtype) for x in (q, k, v)), causal=causal)
        for dtype in (torch.float64, torch.float16)
    )
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1])


@pytest.mark.parametrize(
    "problem",
    [
        Attention(1024, heads=1),
        Attention(2048, heads=1, causal=True),
        Attention(256, heads=2),
        Attention(424, batch=2, heads=1, causal=True),
    ],
    ids=str,
)
def test_form(problem: Attention) -> None:
    with options("races=off,poison=off"):
        counted = compare.count_flash1(problem)
    assert compare.differences(flash1.forward(problem), counted) == []


def test_other_head_dims_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 64, got 128"):
        flash1.forward(Attention(1024, head_dim=128))

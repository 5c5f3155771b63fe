"""Every instruction-set level of the CPU family that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import EVERYTHING, Case
from support import Target, check_dense, check_dense_gradients

from flash_attn2 import build_info, flash_attn_func
from flash_attn2._impl import backends

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(params=build_info()["cpu"]["isa_levels"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    module = backends.load("cpu").module
    default = module.build_info()["isa"]
    module.set_isa(request.param)
    yield request.param
    module.set_isa(default)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [13, 40, 64, 128])
def test_level(level: str, head_dim: int, dtype: torch.dtype) -> None:
    assert build_info()["cpu"]["isa"] == level
    target = Target("cpu", dtype)
    plain = Case(head_dim)
    everything = Case(head_dim, batch=1, alibi="batch", sink=True, options=EVERYTHING)
    for case in (plain, everything):
        check_dense(*case.qkv(target), **case.all_options("cpu"))
        check_dense_gradients(*case.qkv(target), **case.all_options("cpu"))


CACHES = {
    "decode": CacheCase(seqlen_q=1, heads=(8, 2), new="none"),
    "decode_pages_splits": CacheCase(128, (8, 2), 1, page_size=16, new="neox", num_splits=3),
    "many_heads_per_group": CacheCase(40, (16, 1), 1, new="interleaved", modifier="softcap"),
    "prefill": CacheCase(96, (6, 2), 65, page_size=48, new="partial", leftpad=True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CACHES.values(), ids=CACHES)
def test_level_over_a_cache(level: str, case: CacheCase, dtype: torch.dtype) -> None:
    assert build_info()["cpu"]["isa"] == level
    check_kvcache(**case.arguments(Target("cpu", dtype)))


def test_level_from_the_environment() -> None:
    script = "import flash_attn2; print(flash_attn2.build_info()['cpu']['isa'])"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"FLASH_ATTN2_CPU_ISA": "baseline"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "baseline"


@pytest.mark.parametrize(("rows", "same"), [(1, "x86-64-v4-bf16"), (4, "x86-64-v4")])
def test_products_of_pairs_are_for_few_queries(rows: int, same: str) -> None:
    """On processors that are slow at them."""
    module = backends.load("cpu").module
    few = "x86-64-v4-bf16-few"
    if module.build_info()["isa"] != few:
        pytest.skip("this processor is fast at products of pairs, or has none")
    q, k, v = (torch.randn(2, n, 8, 40).bfloat16() for n in (rows, 500, 500))
    q[..., 0], k[..., 0] = 2.0**127, 2.0**-128  # subnormal, which counts as zero in pairs
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    results = {}
    try:
        for level in ("x86-64-v4", "x86-64-v4-bf16", few):
            module.set_isa(level)
            out, lse = flash_attn_func(q, k, v, return_lse=True)
            results[level] = [lse, out, *torch.autograd.grad(out.sum(), (q, k, v))]
    finally:
        module.set_isa(few)
    assert torch.equal(results[few][0], results[same][0])
    assert torch.equal(results[few][1], results[same][1])
    assert not torch.equal(results["x86-64-v4"][0], results["x86-64-v4-bf16"][0])
    if rows > 1:
        for x, y in zip(results[few], results["x86-64-v4"], strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (100, 0)}], ids=str)
def test_chunks_of_any_processor(options: dict[str, Any]) -> None:
    """Results of the forward pass are the same bits, and gradients are right."""
    module = backends.load("cpu").module
    info = module.build_info()
    target = Target("cpu", torch.float32)
    q, k, v = (target.tensor(1, n, h, 40) for n, h in ((1100, 2), (700, 1), (700, 1)))
    expected = flash_attn_func(q, k, v, **options)
    try:
        for l2_kib, wide in ((64, False), (1024, True), (0, False)):  # 512, 128, 256 queries
            module.set_processor(l2_kib << 10, wide)
            assert torch.equal(flash_attn_func(q, k, v, **options), expected)
            check_dense_gradients(q, k, v, **options)
    finally:
        module.set_processor(info["l2_bytes"], info["wide_l2"])

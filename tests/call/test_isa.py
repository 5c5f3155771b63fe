"""Every instruction-set level of the CPU family that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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


def test_the_level_of_bf16_products_is_for_processors_that_are_fast_at_them() -> None:
    info = build_info()["cpu"]
    if "FLASH_ATTN2_CPU_ISA" in os.environ:
        pytest.skip("a level was asked for")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cooper_lake = "model\t\t: 85\n" in text
    slow = "GenuineIntel" in text and not cooper_lake
    highest = info["isa_levels"][-1]
    assert info["isa"] == ("x86-64-v4" if slow and highest == "x86-64-v4-bf16" else highest)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 40, 64, 80, 112, 256])
def test_bf16_of_any_width(level: str, rows: int, head_dim: int) -> None:
    """Few queries read entries of K and V in an order of their own."""
    target = Target("cpu", torch.bfloat16)
    q, k, v = (target.tensor(2, n, h, head_dim) for n, h in ((rows, 2), (500, 2), (500, 2)))
    assert build_info()["cpu"]["isa"] == level
    check_dense(q, k, v)


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

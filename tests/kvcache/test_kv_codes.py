"""KV caches of 8 bits: float8_e4m3fn, float8_e5m2, int8; scales by sequences, pages, tokens.

Codes and scales are exact inputs: the reference in float64 attends to codes times scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cache_cases import AXES, CacheCase, all_pairs, bits, check_kvcache, possible
from code_cases import CODES, QUERIES, UNITS, quantised_arguments
from support import CPU_FLOAT32, ONE_DTYPE, Target, cumulative, lengths, num_threads, targets
from torch import Tensor

from flash_attn2 import build_info, flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.reference import dequantised, quantised, row_scales

KERNELS = [target for target in QUERIES if target.backend != "cpu"]  # for CUDA
EACH_FAMILY = [CPU_FLOAT32, *KERNELS]
codes = pytest.mark.parametrize("code", CODES, ids=str)
units = pytest.mark.parametrize("unit", UNITS)


def combinations() -> Iterator[Any]:
    """Every pair of features, of types of codes and of units of scales."""
    axes = {"target": QUERIES, "code": CODES, "unit": UNITS} | AXES
    for case in all_pairs(axes, possible):
        target, code, unit = (case.pop(x) for x in ("target", "code", "unit"))
        name = "-".join(f"{k}={v}" for k, v in case.items() if v not in (None, False, 0))
        yield pytest.param(
            target, code, unit, CacheCase(**case), id=f"{target}-{code}-{unit}-{name}"
        )


@pytest.mark.parametrize(
    ("target", "code", "unit", "case"), list(combinations()), indirect=["target"]
)
def test_combinations(target: Target, code: torch.dtype, unit: str, case: CacheCase) -> None:
    check_kvcache(**quantised_arguments(case, target, code, unit))


@pytest.fixture(params=build_info()["cpu"]["isa_levels"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    module = backends.load("cpu").module
    default = module.build_info()["isa"]
    module.set_isa(request.param)
    yield request.param
    module.set_isa(default)


@codes
@pytest.mark.parametrize("seqlen_q", [1, 40])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(13, 29), (40, 40), (128, 70), (576, 512)])
def test_widths_and_levels(
    level: str, head_dim: int, head_dim_v: int, seqlen_q: int, code: torch.dtype
) -> None:
    """Rows that end inside a vector, and those of absorbed MLA."""
    case = CacheCase(head_dim, (8, 1), seqlen_q, page_size=16, num_splits=2, head_dim_v=head_dim_v)
    check_kvcache(**quantised_arguments(case, CPU_FLOAT32, code, "row"))


@codes
@pytest.mark.parametrize("seqlen_q", [1, 70])
def test_every_code(level: str, seqlen_q: int, code: torch.dtype) -> None:
    """Of a single key, queries get the values as they stand."""
    every = torch.arange(256).to(torch.uint8).view(code)
    v_cache = every.view(1, 1, 1, 256)
    scale = torch.tensor([[0.75]])
    q, k_cache = torch.zeros(1, seqlen_q, 2, 256), torch.zeros(1, 1, 1, 256).to(code)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k_descale=scale, v_descale=scale)
    expected = (every.float() * 0.75).expand(out.shape)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@codes
@targets(KERNELS)
@pytest.mark.parametrize("seqlen_q", [1, 70])
def test_every_code_of_kernels(target: Target, seqlen_q: int, code: torch.dtype) -> None:
    """The same, where elements of 16 bits take a part of the scale."""
    every = torch.arange(256).to(torch.uint8).view(code).to(target.device)
    v_cache = every.view(1, 1, 4, 64)
    scale = torch.full((1, 4), 0.75, device=target.device)
    q, k_cache = target.tensor(1, seqlen_q, 8, 64), torch.zeros_like(v_cache)
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k_descale=scale, v_descale=scale)
    expected = (every.float() * 0.75).to(target.dtype).view(4, 64).repeat_interleave(2, 0)
    torch.testing.assert_close(out, expected.expand(out.shape), rtol=0, atol=0, equal_nan=True)


@codes
@targets(KERNELS)
@pytest.mark.parametrize("exponent", [-20, -8, 0, 6])
def test_scales_of_any_size(target: Target, exponent: int, code: torch.dtype) -> None:
    """Numbers keep their precision wherever those of the dtype have it."""
    case = CacheCase(64, (4, 2), 3, new="none", mask="full")
    arguments = quantised_arguments(case, target, code, "row")
    arguments["k_descale"] *= 2.0**-exponent
    arguments["v_descale"] *= 2.0**exponent
    arguments["q"] *= 2.0 ** min(exponent, 4)
    arguments["softmax_scale"] = 0.125 * 2.0 ** max(exponent - 4, 0)
    check_kvcache(**arguments)


SPECIAL = torch.tensor(
    [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-44, 3e38, -3e38, 1.0, 448.0]
)


@codes
@targets([CPU_FLOAT32, Target("cpu", torch.bfloat16), *KERNELS])
@pytest.mark.parametrize("unit", ["sequence", "row"])
def test_appends_saturate(unit: str, target: Target, code: torch.dtype) -> None:
    """Rows with NaN, infinities, subnormals, ties, and beyond the largest code; of zeros alone."""
    special = SPECIAL.repeat(7)[:64]
    rows = [special, special.roll(3)[:8].repeat(8), torch.zeros(64), torch.full((64,), 1e-44)]
    new = torch.stack([*rows, torch.arange(-32, 32) + 0.5, 300 * torch.randn(64)])
    new = new.to(target.device, target.dtype).view(1, 6, 1, 64)
    shape = (1, 1) if unit == "sequence" else (1, 8, 1)
    scales = {name: torch.ones(shape, device=target.device) for name in ("k_descale", "v_descale")}
    k_cache, v_cache = torch.zeros(2, 1, 8, 1, 64, device=target.device).to(code)
    q = target.tensor(1, 1, 1, 64)
    flash_attn_with_kvcache(q, k_cache, v_cache, new, -new, cache_seqlens=1, **scales)
    for cache, written, x in ((k_cache, "k_descale", new), (v_cache, "v_descale", -new)):
        expected = row_scales(x, code) if unit == "row" else torch.ones_like(x[..., 0]).float()
        assert torch.equal(bits(cache[:, 1:7]), bits(quantised(x, expected[..., None], code)))
        if unit == "row":
            assert torch.equal(scales[written][:, 1:7], expected)
            assert scales[written][0, 0] == scales[written][0, 7] == 1
    numbers = dequantised(k_cache.cpu(), torch.ones(1, 8, 1), torch.float32)[0, 1, 0]
    largest = {torch.int8: 127.0}.get(code) or torch.finfo(code).max
    assert numbers[1] == numbers[6] == largest
    assert numbers[0].isnan() if code.is_floating_point else numbers[0] == 0


@targets(ONE_DTYPE)
@pytest.mark.parametrize("seqlen_q", [1, 70])
@pytest.mark.parametrize(
    ("code", "value"),
    [
        (torch.float8_e4m3fn, torch.nan),
        (torch.float8_e5m2, torch.nan),
        (torch.float8_e5m2, torch.inf),
    ],
)
def test_special_codes(target: Target, value: float, code: torch.dtype, seqlen_q: int) -> None:
    """They do to a result what they do from a cache of bfloat16, which holds the same numbers."""
    q = target.tensor(2, seqlen_q, 4, 40)
    caches = torch.randn(2, 2, 80, 2, 40, device=target.device).to(code).float()
    scale = torch.full((2, 2), 0.5, device=target.device)
    for i, sign in itertools.product(range(2), (1, -1)):
        numbers = caches.clone()
        numbers[i, 1, 5, 0, 3] = sign * value
        out, lse = flash_attn_with_kvcache(
            q, *numbers.to(code), k_descale=scale, v_descale=scale, return_lse=True
        )
        expected, expected_lse = flash_attn_with_kvcache(
            q, *(numbers / 2).bfloat16(), return_lse=True
        )
        assert not expected[1].isfinite().all()
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02, equal_nan=True)
        torch.testing.assert_close(lse, expected_lse, equal_nan=True)


@units
@targets(EACH_FAMILY)
@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize("seqlen_q", [1, 30])
def test_reproducible(target: Target, seqlen_q: int, num_splits: int, unit: str) -> None:
    """The same bits whatever the threads and the rest of the batch."""
    case = CacheCase(64, (8, 2), seqlen_q, page_size=16, num_splits=num_splits)
    arguments = quantised_arguments(case, target, torch.float8_e4m3fn, unit)
    out = call_on_copies(arguments)
    with num_threads(1):
        assert torch.equal(call_on_copies(arguments), out)
    alone = {
        name: x[1:2]
        if name in ("q", "k", "v", "block_table", "cache_seqlens")
        or (x.ndim, unit) == (2, "sequence")
        else x
        for name, x in arguments.items()
        if isinstance(x, Tensor)
    }
    alone |= {name: x for name, x in arguments.items() if not isinstance(x, Tensor)}
    assert torch.equal(call_on_copies(alone), out[1:2])


def call_on_copies(arguments: dict[str, Any]) -> Tensor:
    out = flash_attn_with_kvcache(
        **{k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    )
    assert isinstance(out, Tensor)
    return out


@codes
@pytest.mark.parametrize("unit", ["sequence", "row"])
@pytest.mark.parametrize("rows_q", [1, 20])
def test_keys_that_hold_values(rows_q: int, unit: str, code: torch.dtype) -> None:
    """Written once, with one scale."""
    case = CacheCase(48, (16, 1), rows_q, page_size=16)
    arguments = quantised_arguments(case, CPU_FLOAT32, code, unit)
    arguments["v_cache"] = arguments["k_cache"][..., :32]
    arguments["v_descale"] = arguments["k_descale"]
    del arguments["v"]
    check_kvcache(**arguments)


@targets(QUERIES)
def test_one_scale_for_all(target: Target) -> None:
    """Expanded, as a layer's scale is by those who keep one."""
    case = CacheCase(32, (4, 2), 2, page_size=16)
    arguments = quantised_arguments(case, target, torch.float8_e4m3fn, "sequence")
    scale = torch.tensor(0.01)
    for name in ("k_descale", "v_descale"):
        arguments[name] = scale.expand(3, 2)
    check_kvcache(**arguments)
    arguments["k_cache"] = arguments["k_cache"][:3]  # as many pages as sequences
    assert scale == 0.01


def test_packed_queries_of_other_lengths() -> None:
    """Prompts and single tokens in one call, each with scales of its own."""
    q = torch.randn(41, 4, 32)
    k, v = torch.randn(2, 41, 2, 32).unbind()
    caches = torch.zeros(2, 12, 8, 2, 32).to(torch.int8)
    scales = torch.rand(2, 12, 8, 2)
    check_kvcache(
        q=q,
        k_cache=caches[0],
        v_cache=caches[1],
        k=k,
        v=v,
        k_descale=scales[0],
        v_descale=scales[1],
        cache_seqlens=lengths(0, 0),
        block_table=torch.randperm(12).int().view(2, 6),
        cu_seqlens_q=cumulative(40, 1),
        causal=True,
    )

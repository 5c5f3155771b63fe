"""Lengths, tables and positions that the host cannot check, in the kernels of a GPU.

The emulator raises when a kernel leaves a tensor. With it, CPU tensors get past the checks of
values as tensors on a GPU do. Around the caches lie rows that must stay as they are.
"""

from __future__ import annotations

import random

import pytest
import torch
from cache_cases import CacheCase, bits
from support import ONE_DTYPE, Target, emulator_options, targets
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2._impl import cache_values, forms

EMULATED = [target for target in ONE_DTYPE if target.backend == "sm80-emulated"]
LIMITS = (-(2**31), -(2**30), -17, -1, 0, 1, 2, 31, 100, 321, 10**6, 2**30, 2**31 - 1)
NAMES = (
    "cache_seqlens",
    "cache_leftpad",
    "block_table",
    "cache_batch_idx",
    "cu_seqlens_q",
    "cu_seqlens_k_new",
)
CASES = {
    "rows_of_the_cache": CacheCase(heads=(4, 2), batch_idx=True, new="neox", leftpad=True),
    "dense": CacheCase(heads=(4, 2), new="append", leftpad=True, mask="window", num_splits=3),
    "paged": CacheCase(heads=(4, 2), page_size=16, new="interleaved", leftpad=True, num_splits=2),
    "page_of_one_row": CacheCase(heads=(4, 1), page_size=1, new="partial", seqlen_q=1),
    "packed": CacheCase(heads=(4, 2), page_size=48, new="neox", packed=True, more_new=2),
    "read_only": CacheCase(heads=(4, 2), page_size=48, new="none", packed=True, modifier="alibi"),
}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in (forms.KVCACHE, forms.KVCACHE_APPEND):
        monkeypatch.setattr(form, "check_values", cache_values.check_layout)


def fenced(cache: Tensor) -> tuple[Tensor, Tensor]:
    """The cache between rows of ones: a view, and the whole."""
    whole = torch.ones(cache.shape[0], cache.shape[1] + 2, *cache.shape[2:], dtype=cache.dtype)
    whole = torch.cat([whole[:1], whole, whole[:1]])
    view = whole[1:-1, 1:-1]
    view.copy_(cache)
    return view, whole


def fence(whole: Tensor) -> Tensor:
    return torch.cat([x.flatten() for x in (whole[0], whole[-1], whole[:, 0], whole[:, -1])])


@targets(EMULATED)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("unchecked")
def test_no_value_leads_out_of_the_tensors(case: CacheCase, seed: int, target: Target) -> None:
    draw = random.Random(seed)
    arguments = case.arguments(target)
    wholes = {}
    for name in ("k_cache", "v_cache"):
        arguments[name], wholes[name] = fenced(arguments[name])
    given = [name for name in NAMES if name in arguments]
    for name in given if seed == 0 else draw.sample(given, min(2, len(given))):
        hostile = arguments[name].flatten().tolist()
        for i in range(len(hostile)):
            if draw.random() < 0.7:
                hostile[i] = draw.choice(LIMITS)
        arguments[name] = torch.tensor(hostile, dtype=torch.int32).view(arguments[name].shape)
    # Sequences that overlap write the same rows, in any order.
    with emulator_options(f"seed={seed},async=random,races=off"):
        flash_attn_with_kvcache(**arguments)
    for whole in wholes.values():
        assert (fence(whole) == 1).all()


@targets(EMULATED)
@pytest.mark.usefixtures("unchecked")
def test_rows_without_a_place_are_dropped(target: Target) -> None:
    """What has a place is written, and attention sees it."""
    case = CacheCase(heads=(4, 2), seqlen_q=4, page_size=16, new="append")
    arguments = case.arguments(target)
    arguments["cache_seqlens"] = torch.tensor([318, 5, 30], dtype=torch.int32)
    arguments["block_table"] = torch.arange(60).view(3, 20).int()
    for name in ("k_cache", "v_cache"):
        arguments[name] = target.tensor(60, 16, 2, 64)
    arguments["block_table"][2, 1:] = 60  # one past the last page
    expected = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    for name, new in (("k_cache", "k"), ("v_cache", "v")):
        expected[name][19, 14:] = arguments[new][0, :2]
        expected[name][20, 5:9] = arguments[new][1]
    # The page that holds position 30 is valid; positions 32 and 33 have none.
    arguments["block_table"][2, 1] = 41
    for name, new in (("k_cache", "k"), ("v_cache", "v")):
        expected[name][41, 14:] = arguments[new][2, :2]
    out = flash_attn_with_kvcache(**arguments)
    assert out.isfinite().all()
    for name, cache in expected.items():
        assert torch.equal(bits(arguments[name]), bits(cache))


@targets(EMULATED)
@pytest.mark.usefixtures("unchecked")
def test_positions_past_the_rotary_tables_take_the_last_row(target: Target) -> None:
    arguments = CacheCase(heads=(4, 2), new="neox").arguments(target)
    tables = {name: arguments[name][:200] for name in ("rotary_cos", "rotary_sin")}
    repeated = {name: x[torch.arange(320).clamp(max=199)] for name, x in tables.items()}
    results = []
    for rotary in (tables, repeated):
        given = arguments | rotary | {"k_cache": arguments["k_cache"].clone()}
        results.append((flash_attn_with_kvcache(**given), bits(given["k_cache"])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])

"""The sm80 kernels where approximate instructions (ex2, lg2, rcp, tanh) are as far off as the PTX
ISA allows, up or down by operand and seed.

The whole suite holds so: FLASH_ATTN2_EMULATOR=approx=worst. Here is a part of it, for every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import EVERYTHING, FEATURES, Case
from support import (
    Target,
    check_dense,
    check_dense_gradients,
    cpu_tensors_on,
    emulator_options,
    require_backend,
)

from flash_attn2 import flash_attn_func

TARGET = Target("sm80-emulated", torch.float16)


@pytest.fixture(autouse=True)
def _as_far_off_as_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    require_backend("sm80-emulated")
    options = "seed=2,async=random,approx=worst"
    monkeypatch.setenv("FLASH_ATTN2_EMULATOR", options)  # what the rule for lse goes by
    with cpu_tensors_on("sm80-emulated"), emulator_options(options):
        yield


@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_features(case: Case) -> None:
    check_dense(*case.qkv(TARGET), **case.all_options("cpu"))


@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_gradients(case: Case) -> None:
    check_dense_gradients(*case.qkv(TARGET), **case.all_options("cpu"))


@pytest.mark.parametrize("head_dim", [128, 256])
def test_everything(head_dim: int) -> None:
    case = Case(head_dim, batch=1, alibi="batch", sink=True, options=EVERYTHING)
    check_dense_gradients(*case.qkv(TARGET), **case.all_options("cpu"))


def test_scores_of_any_size() -> None:
    q, k, v = Case().qkv(TARGET)
    check_dense(30 * q, 30 * k, v)
    check_dense(q, k, v, sink=torch.tensor([80.0, -80.0, 0.0, 3e4]))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_cache(num_splits: int) -> None:
    case = CacheCase(64, (4, 2), 2, page_size=16, new="neox", num_splits=num_splits)
    check_kvcache(**case.arguments(TARGET))


def test_errors_follow_from_operands() -> None:
    """Two calls agree to the bit, and what is exact differs."""
    q, k, v = Case().qkv(TARGET)
    out, lse = flash_attn_func(q, k, v, return_lse=True)
    again, lse_again = flash_attn_func(q, k, v, return_lse=True)
    assert torch.equal(out, again)
    assert torch.equal(lse, lse_again)
    with emulator_options("approx=exact"):
        assert not torch.equal(lse, flash_attn_func(q, k, v, return_lse=True)[1])

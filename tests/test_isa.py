"""Every instruction-set level of the CPU family that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import EVERYTHING, Case
from support import Target, check_dense, check_dense_gradients

from flash_attn2 import _backend, build_info

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(params=build_info()["cpu"]["isa_levels"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    module = _backend.load("cpu").module
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

"""The closed forms of `flash_attn2.io` are what the kernel emulator counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import BUCKETS
from support import cpu_tensors_on, emulator_options, require_backend

from flash_attn2.io import flash2
from flash_attn2.io.compare import count_flash2, differences
from flash_attn2.io.problem import Attention


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    require_backend("sm80-emulated")
    torch.manual_seed(0)
    with (
        cpu_tensors_on("sm80-emulated"),
        emulator_options("races=off,poison=off"),  # counts do not depend on them
    ):
        yield


PROBLEMS = [
    Attention(1024, heads=1),
    Attention(2048, heads=1, causal=True),
    *(
        Attention(384 if d > 32 else 768, heads=2, head_dim=d, causal=c)
        for d in BUCKETS
        for c in (False, True)
    ),
    Attention(432, batch=2, heads=1, causal=True),  # ragged tiles
    Attention(400, heads=1, head_dim=80),  # and a part of a bucket
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_flash2(problem: Attention) -> None:
    counted = count_flash2(problem)
    assert differences(flash2.forward(problem), counted.forward) == []
    assert differences(flash2.backward(problem), counted.backward) == []

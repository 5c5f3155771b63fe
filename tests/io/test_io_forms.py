"""The closed forms of `flash_attn2.io` are what the kernel emulator counts."""

from __future__ import annotations

import pytest
from cases import BUCKETS
from support import emulator_options

from flash_attn2.io import flash2
from flash_attn2.io.compare import count_flash2, differences
from flash_attn2.io.problem import DEVICES, Attention

pytestmark = pytest.mark.usefixtures("emulated")

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
    *(
        Attention(304, heads=1, head_dim=d, head_dim_v=d_v, causal=c)
        for d, d_v in ((192, 128), (160, 96), (64, 32), (128, 256), (256, 128), (512, 256))
        for c in (False, True)
    ),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_flash2(problem: Attention) -> None:
    counted = count_flash2(problem)
    assert differences(flash2.forward(problem), counted.forward) == []
    assert differences(flash2.backward(problem), counted.backward) == []


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (192, 192), (256, 128)])
def test_flash2_with_less_shared_memory(head_dim: int, head_dim_v: int) -> None:
    device = DEVICES["rtx3090"]
    problem = Attention(272, heads=1, head_dim=head_dim, head_dim_v=head_dim_v, device=device)
    with emulator_options("races=off,poison=off,device=sm86"):
        counted = count_flash2(problem)
    assert differences(flash2.forward(problem), counted.forward) == []
    assert differences(flash2.backward(problem), counted.backward) == []


def test_a_tensor_of_values_is_as_wide_as_they_are() -> None:
    """Every sector of every tensor once: no byte of keys stands for one of values."""
    problem = Attention(1024, heads=3, head_dim=192, head_dim_v=128)
    forward, backward = flash2.forward(problem).main, flash2.backward(problem).main
    keys, values = (3 * 1024 * width * 2 for width in (192, 128))
    assert {name: x.distinct for name, x in forward.reads.items()} == {
        "q": keys,
        "k": keys,
        "v": values,
    }
    assert forward.writes["out"].distinct == values
    assert backward.reads["grad_out"].distinct == values
    assert {name: backward.writes[name].distinct for name in ("grad_k", "grad_v")} == {
        "grad_k": keys,
        "grad_v": values,
    }

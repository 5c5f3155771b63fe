"""What the sm90 kernels do to scores beside scaling them: softcap, ALiBi, biases and dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case
from support import HALF, Target, check_dense, check_dense_gradients, emulator_options, targets
from test_sm90_backward import backward_of_sm90
from test_sm90_forward import BUCKETS, kernels_of_sm80, launches_of_sm90
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import launch
from flash_attn2._impl.problem import Dropout, Options, Positions, Problem

TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]
LENGTHS = 134, 290

OPTIONS: dict[str, dict[str, Any]] = {
    "modified": {"causal": True, "softcap": 4.0, "alibi_slopes": torch.tensor([0.3, 0.1])},
    "dropout": {"dropout_p": 0.2, "window_size": (200, 60)},
}


def drawn_qkv(target: Target, *widths: int) -> tuple[Tensor, Tensor, Tensor]:
    width, width_v = widths
    return Case(width, 1, *LENGTHS, num_heads=2, num_heads_kv=1, head_dim_v=width_v).qkv(target)


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kernel(name: str, bucket: tuple[int, int], target: Target) -> None:
    """Heads side by side in a tile, or one head with all that needs rows of its own."""
    qkv, options = drawn_qkv(target, *bucket), dict(OPTIONS[name])
    if name == "dropout":
        options["bias"] = torch.randn(2, *LENGTHS).to(target.dtype)
        options["relative_bias"] = torch.randn(1, sum(LENGTHS) - 1)
    with (
        emulator_options(f"async=random,seed={bucket[0]}", target.backend),
        launches_of_sm90(True),
    ):
        check_dense(*qkv, **options)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_lie_anyhow(dtype: torch.dtype, target: Target) -> None:
    """In pairs that can be read at once, in pairs that cannot, or apart: with the same result."""
    qkv = drawn_qkv(target, 128, 128)
    bias = torch.randn(2, *LENGTHS).to(dtype)
    wide = torch.full((2, LENGTHS[0] + 2, LENGTHS[1] + 5), torch.nan, dtype=dtype)
    wide[:, 1:-1, 3:-2] = bias
    with launches_of_sm90(True):
        check_dense(*qkv, bias=bias)
        expected = flash_attn_func(*qkv, bias=bias)
        for other in (wide[:, 1:-1, 3:-2], bias.transpose(-1, -2).contiguous().transpose(-1, -2)):
            assert torch.equal(flash_attn_func(*qkv, bias=other), expected)
    for row in (bias[:1, :1], bias[:, :, :1]):
        out = flash_attn_func(*qkv, bias=row.expand(bias.shape).contiguous())
        assert torch.equal(flash_attn_func(*qkv, bias=row), out)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("begin", [32, 40])
def test_dropout_of_a_part(begin: int, target: Target) -> None:
    """Entries are numbered in the whole, whether or not its blocks of 32 keys are the part's."""
    q, k, v = drawn_qkv(target, 128, 128)
    options = Options(dropout=Dropout(0.3, torch.tensor([17, 2**33 + 5])))
    at = Positions(70, begin, *LENGTHS)
    part = Problem(q[:, 70:], k[:, begin:], v[:, begin:], options=options, positions=at)
    with launches_of_sm90(True):
        of_sm90 = launch.forward(part, over_cache=False)
    with kernels_of_sm80():
        of_sm80 = launch.forward(part, over_cache=False)
    torch.testing.assert_close(of_sm90[:2], of_sm80[:2], atol=0.02, rtol=0.02)


@targets(ONE_DTYPE)
def test_gradients_with_dropout(target: Target) -> None:
    """The backward pass of sm80 drops what the forward pass of sm90 has dropped."""
    case = Case(256, batch=1, seqlen_q=70, options={"dropout_p": 0.3, "softcap": 3.0})
    with backward_of_sm90(False):
        check_dense_gradients(*case.qkv(target), **case.options)

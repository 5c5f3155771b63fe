"""The sm90 backward kernels under a block mask: every variant that is built, lists of all kinds,
the order of sums, and what the kernels need not do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import HALF, Target, check_dense_gradients, emulator_options, targets
from test_sm90_backward import (
    MMA_PRODUCTS,
    backward_of_sm90,
    check_gradients_like_sm80,
    counted,
    gradients,
)
from test_sm90_backward_scores import BUCKETS, NARROW_AND_WIDE
from test_sm90_block_mask import LENGTHS, drawn_blocks, drawn_mask, drawn_qkv, pairs_of
from torch import Tensor

from flash_attn2 import masks
from flash_attn2._impl.block_mask import make_block_mask
from flash_attn2._impl.problem import Options, Positions, Problem
from flash_attn2.masks import BlockMask

TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]
SLOPES = torch.tensor([0.3, 0.1])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"sink": torch.tensor([0.5, -1.0])},
    "modified": {"softcap": 4.0, "alibi_slopes": SLOPES, "dropout_p": 0.2},
}


def mask_of(blocks: Tensor) -> BlockMask:
    """All pairs of the blocks."""
    rows, cols = blocks.shape
    return BlockMask.from_dense(pairs_of(blocks, 64 * rows, 64 * cols))


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kernel(name: str, bucket: tuple[int, int], target: Target) -> None:
    """With several CTAs at once, one list for the heads of a group and then one for each."""
    qkv = drawn_qkv(target, *bucket)
    for heads, deterministic in ((1, False), (2, True)):
        sums = "ordered" if deterministic else "free"
        schedule = f"ctas=3,async=random,seed={bucket[0]},sums={sums}"
        options = {**OPTIONS[name], "deterministic": deterministic}
        with backward_of_sm90(True), emulator_options(schedule, target.backend):
            check_dense_gradients(*qkv, block_mask=drawn_mask(heads), **options)


ALONE: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 1.5, "softmax_scale": 1.0},
    "alibi": {"alibi_slopes": SLOPES},
    "scale_zero": {"softmax_scale": 0.0},
    "dropout": {"dropout_p": 0.3},
    "bias": {"bias": torch.randn(2, *LENGTHS), "relative_bias": torch.randn(1, sum(LENGTHS) - 1)},
    "all": {
        **{"softcap": 5.0, "alibi_slopes": SLOPES, "dropout_p": 0.2, "deterministic": True},
        **{"bias": torch.randn(2, *LENGTHS), "sink": torch.tensor([0.5, -1.0])},
    },
}


@targets(ONE_DTYPE)
@pytest.mark.parametrize("widths", NARROW_AND_WIDE, ids=str)
@pytest.mark.parametrize("name", ALONE)
def test_alone_and_together(name: str, widths: tuple[int, int], target: Target) -> None:
    """With masks of sequences, and of heads in every other case."""
    qkv = drawn_qkv(target, *widths, batch=2)
    mask = drawn_mask(1 + list(ALONE).index(name) % 2, batch=2)
    with backward_of_sm90(True):
        check_dense_gradients(*qkv, block_mask=mask, **ALONE[name])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shares", [(0.9, 0.15), (0.2, 1.0), (0.3, 0.0), (0.0, 0.4)], ids=str)
def test_lists_of_a_block(shares: tuple[float, float], target: Target) -> None:
    """Of two blocks of keys, each with a list, which together have more steps than a ring."""
    blocks = torch.cat([drawn_blocks(14, 1, share, 7) for share in shares], dim=1)
    q = target.tensor(1, 14 * 64, 1, 64)
    k, v = (target.tensor(1, 128, 1, 64) for _ in "kv")
    with emulator_options("async=late,seed=2", target.backend), backward_of_sm90(True):
        check_dense_gradients(q, k, v, block_mask=mask_of(blocks))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("lengths", [(1, 1), (63, 65), (200, 130), (150, 449)], ids=str)
def test_lengths(lengths: tuple[int, int], target: Target) -> None:
    """Blocks that end before those of the mask do, and keys that end with one of a CTA's two."""
    qkv = drawn_qkv(target, 64, 64, lengths=lengths)
    rows, cols = (-(-x // 64) for x in lengths)
    every = BlockMask.from_dense(pairs_of(torch.ones(rows, cols, dtype=torch.bool), *lengths))
    with backward_of_sm90(True):
        check_dense_gradients(*qkv, block_mask=every)
        check_dense_gradients(*qkv, block_mask=masks.causal().build(*lengths))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [64, 192])
def test_rows_and_columns_of_nothing(width: int, target: Target) -> None:
    """Heads of a group that list nothing of a block of keys, the last one too, and blocks that
    nothing lists, whose gradients are 0.
    """
    blocks = torch.ones(4, 3, 5, dtype=torch.bool)
    blocks[1:3, :, :2] = False  # of keys of the first CTA
    blocks[3] = False
    blocks[:, 1] = False
    blocks[:, :, 3] = False
    mask = BlockMask.from_dense(pairs_of(blocks, 3 * 64, 5 * 64)[None])
    q = target.tensor(1, 3 * 64, 4, width)
    k, v = (target.tensor(1, 5 * 64, 1, width) for _ in "kv")
    with backward_of_sm90(True):
        check_dense_gradients(q, k, v, block_mask=mask)
        grad_q, grad_k, grad_v = gradients(q, k, v, block_mask=mask)
    for zeros in (grad_q[:, 64:128], grad_q[:, :, 3], grad_k[:, 192:256], grad_v[:, 192:256]):
        assert torch.equal(zeros, torch.zeros_like(zeros))


@targets(ONE_DTYPE)
def test_a_mask_of_nothing(target: Target) -> None:
    q, k, v = drawn_qkv(target, 64, 64)
    nothing = BlockMask.from_dense(torch.zeros(LENGTHS, dtype=torch.bool))
    for x, gradient in zip((q, k, v), gradients(q, k, v, block_mask=nothing), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [64, 96, 128])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("other", [0, 1])
def test_keys_that_are_not_listed_take_part_in_nothing(
    other: int, value: float, width: int, target: Target
) -> None:
    """Of either of the two blocks of a CTA, where infinity times zero would show."""
    mask = mask_of(torch.eye(2, dtype=torch.bool))
    q, k, v = (target.tensor(1, 128, 1, width) for _ in "qkv")
    own, rest = slice(64 - 64 * other, 128 - 64 * other), slice(64 * other, 64 * other + 64)
    q[:, rest] = 0
    expected = gradients(q, k, v, block_mask=mask)
    for x in (k, v):
        x[:, rest] = value
    with backward_of_sm90(True):
        actual = gradients(q, k, v, block_mask=mask)
    for x, y in zip(actual, expected, strict=True):
        assert torch.equal(x[:, own], y[:, own])
        assert x[:, own].isfinite().all()


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [64, 96, 128, 192])
def test_only_listed_blocks_are_multiplied(width: int, target: Target) -> None:
    """A warpgroup whose keys a step does not list rests; queries are copied once for both. Of wide
    heads a CTA has one block of keys.
    """
    blocks = drawn_blocks(6, 8, 0.4, 3)
    steps = int(blocks.unflatten(1, (4, 2)).any(2).sum())
    assert steps < int(blocks.sum()) < 2 * steps
    if width > 128:
        steps = int(blocks.sum())
    q = target.tensor(1, 6 * 64, 1, width)
    k, v = (target.tensor(1, 8 * 64, 1, width) for _ in "kv")
    cost = counted(q, k, v, block_mask=mask_of(blocks))
    assert cost["mma"] * MMA_PRODUCTS == int(blocks.sum()) * 5 * 64 * 64 * width
    assert cost["read.q.bytes"] == steps * 64 * width * 2


@targets(ONE_DTYPE)
@pytest.mark.parametrize("options", ["seed=3,async=early", "seed=4,async=late,ctas=4,approx=worst"])
@pytest.mark.parametrize("width", [64, 128, 192])
def test_schedules(width: int, options: str, target: Target) -> None:
    qkv = drawn_qkv(target, width, width, lengths=(300, 200))
    with backward_of_sm90(True), emulator_options(options, target.backend):
        check_dense_gradients(*qkv, block_mask=drawn_mask(lengths=(300, 200)), softcap=3.0)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [64, 192])
def test_fixed_order_gives_the_same_bits_in_any_schedule(width: int, target: Target) -> None:
    """Also where a block of queries lists one of a CTA's two blocks of keys, or neither."""
    q, k, v = drawn_qkv(target, width, width)
    mask = drawn_mask()
    first = gradients(q, k, v, block_mask=mask, deterministic=True)
    for seed in (8, 9):
        with emulator_options(f"seed={seed},ctas=4,async=random,sums=ordered", target.backend):
            again = gradients(q, k, v, block_mask=mask, deterministic=True)
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)


@targets(ONE_DTYPE)
def test_a_part_of_the_queries(target: Target) -> None:
    """From a block of the mask on, as sm80 has it."""
    lengths = 260, 300
    q, k, v = drawn_qkv(target, 64, 64, lengths=lengths)
    options = Options(block_mask=make_block_mask(drawn_mask(lengths=lengths)))
    part = Problem(q[:, 64:], k, v, options=options, positions=Positions(64, 0, *lengths))
    check_gradients_like_sm80(part)

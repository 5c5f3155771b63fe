"""The sm90 kernels with a block mask in the emulator: every variant that is built, lists of all
kinds, and what the kernels need not do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case
from support import HALF, Target, check_dense, check_dense_gradients, emulator_options, targets
from test_sm90_forward import BUCKETS, launches_of_sm90
from torch import Tensor

from flash_attn2 import flash_attn_func, masks
from flash_attn2._impl import backends, launch
from flash_attn2._impl.block_mask import make_block_mask
from flash_attn2._impl.problem import Options, Positions, Problem
from flash_attn2.masks import BlockMask

TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]
LENGTHS = 134, 410


def drawn_blocks(rows: int, cols: int, share: float, seed: int) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < share


def pairs_of(blocks: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """All pairs of the blocks."""
    return blocks.repeat_interleave(64, -2).repeat_interleave(64, -1)[..., :seqlen_q, :seqlen_k]


def drawn_mask(heads: int = 1, batch: int = 1, lengths: tuple[int, int] = LENGTHS) -> BlockMask:
    """Blocks of all kinds."""
    kinds = torch.randint(0, 3, (batch, heads, *(-(-x // 64) for x in lengths)))
    some = torch.rand(batch, heads, *lengths) < 0.4
    return BlockMask.from_dense(
        pairs_of(kinds == 2, *lengths) | (pairs_of(kinds == 1, *lengths) & some)
    )


def drawn_qkv(
    target: Target, *widths: int, batch: int = 1, lengths: tuple[int, int] = LENGTHS
) -> tuple[Tensor, Tensor, Tensor]:
    width, width_v = widths
    case = Case(width, batch, *lengths, num_heads=2, num_heads_kv=1, head_dim_v=width_v)
    return case.qkv(target)


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_every_kernel(bucket: tuple[int, int], target: Target) -> None:
    """With heads side by side in a tile and one list, and with two lists."""
    qkv = drawn_qkv(target, *bucket)
    with (
        emulator_options(f"async=random,seed={bucket[0]}", target.backend),
        launches_of_sm90(True),
    ):
        check_dense(*qkv, block_mask=drawn_mask(1))
        check_dense(*qkv, block_mask=drawn_mask(2), dropout_p=0.2, softcap=4.0)


OPTIONS: dict[str, dict[str, Any]] = {
    "sink": {"sink": torch.tensor([0.5, -1.0])},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([0.3, 0.1])},
    "scale_zero": {"softmax_scale": 0.0},
    "dropout": {"dropout_p": 0.3},
    "bias": {"bias": torch.randn(2, *LENGTHS), "relative_bias": torch.randn(1, sum(LENGTHS) - 1)},
}


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, target: Target) -> None:
    """With masks of sequences, and of heads in every other case."""
    heads = 1 + list(OPTIONS).index(name) % 2
    qkv = drawn_qkv(target, 128, 128, batch=2)
    with launches_of_sm90(True):
        check_dense(*qkv, block_mask=drawn_mask(heads, batch=2), **OPTIONS[name])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shares", [(0.9, 0.15), (0.2, 1.0), (0.3, 0.0), (0.0, 0.0)], ids=str)
def test_lists_of_a_tile(shares: tuple[float, float], target: Target) -> None:
    """Of two blocks of queries, and more steps than there are places for."""
    blocks = torch.cat([drawn_blocks(1, 30, share, 7) for share in shares])
    lengths = 128, 30 * 64 - 5
    q = target.tensor(1, 128, 1, 128)
    k, v = (target.tensor(1, lengths[1], 1, 128) for _ in "kv")
    with emulator_options("async=late,seed=2", target.backend), launches_of_sm90(any(shares)):
        check_dense(q, k, v, block_mask=BlockMask.from_dense(pairs_of(blocks, *lengths)))


@targets(ONE_DTYPE)
def test_more_work_than_multiprocessors(target: Target) -> None:
    q, k, v = Case(128, 17, 20, 90, num_heads=8, num_heads_kv=8).qkv(target)
    with emulator_options("seed=5,ctas=3,async=random", target.backend), launches_of_sm90(True):
        check_dense(q, k, v, block_mask=drawn_mask(8, lengths=(20, 90)))


@targets(ONE_DTYPE)
def test_patterns(target: Target) -> None:
    lengths = 150, 300
    qkv = drawn_qkv(target, 128, 128, lengths=lengths)
    with launches_of_sm90(True):
        for pattern in (masks.causal(), masks.longformer(window=50, global_tokens=3)):
            check_dense(*qkv, block_mask=pattern.build(*lengths))
    causal = flash_attn_func(*qkv, causal=True)
    listed = flash_attn_func(*qkv, block_mask=masks.causal().build(*lengths))
    torch.testing.assert_close(listed, causal, atol=0.02, rtol=0.02)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [128, 192])
def test_only_listed_blocks_are_multiplied_and_read(width: int, target: Target) -> None:
    """Steps of one block, and of two that need not be neighbours; where one of the two lists of a
    tile has nothing in a step, its warpgroup rests.
    """
    module: Any = backends.load(target.backend).module
    blocks = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]).bool()
    q = target.tensor(1, 128, 1, width)
    k, v = (target.tensor(1, 7 * 64, 1, width) for _ in "kv")
    mask = BlockMask.from_dense(pairs_of(blocks, 128, 7 * 64))
    module.reset_counters()
    expected = flash_attn_func(q, k, v, block_mask=mask)
    counters = module.counters()
    one = 64 * 64 * width / (16 * 8 * 16)
    # Blocks by steps: (6 5) (3 2) (0), or each on its own. Scores are those of whole steps, and of
    # the first one for both lists.
    scores = 2 + 2 + 2 + 2 if width == 128 else int(blocks.sum()) + 1
    assert counters["mma"] == one * (scores + int(blocks.sum()))
    assert counters["read.k.bytes"] == int(blocks.any(0).sum()) * 64 * width * 2
    k[:, 64:128] = v[:, 64:128] = torch.nan
    assert torch.equal(flash_attn_func(q, k, v, block_mask=mask), expected)


@targets(ONE_DTYPE)
def test_keys_that_are_not_listed_take_part_in_nothing(target: Target) -> None:
    """Even beside listed ones in a step, where infinity times zero would show."""
    mask = BlockMask.from_dense(pairs_of(torch.eye(2, dtype=torch.bool), 128, 128))
    q, k, v = (target.tensor(1, 128, 1, 128) for _ in "qkv")
    expected = flash_attn_func(q, k, v, block_mask=mask)
    for x in (k, v):
        x[:, 64:] = torch.inf
    assert torch.equal(flash_attn_func(q, k, v, block_mask=mask)[:, :64], expected[:, :64])


@targets(ONE_DTYPE)
def test_parts_of_queries_get_the_bits_of_the_whole(target: Target) -> None:
    """Of whole tiles: of 64 queries of two heads."""
    lengths = 260, 300
    qkv = drawn_qkv(target, 128, 128, lengths=lengths)
    mask = drawn_mask(lengths=lengths)
    options = Options(block_mask=make_block_mask(mask))
    whole = launch.forward(Problem(*qkv, options=options), over_cache=False)
    at = Positions(64, 0, *lengths)
    part = Problem(qkv[0][:, 64:], *qkv[1:], options=options, positions=at)
    with launches_of_sm90(True):
        out, lse, *_ = launch.forward(part, over_cache=False)
    assert torch.equal(out, whole[0][:, 64:])
    assert torch.equal(lse, whole[1][..., 64:])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_gradients(dropout_p: float, target: Target) -> None:
    """The backward pass of sm80, of the widest heads, takes what a forward pass of sm90 leaves."""
    qkv = drawn_qkv(target, 256, 256)
    check_dense_gradients(*qkv, block_mask=drawn_mask(1), dropout_p=dropout_p)

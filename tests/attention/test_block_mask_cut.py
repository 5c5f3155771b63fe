"""Gradients under block masks with rows that list more than 256 blocks, whose keys the CPU cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Target, check_dense_gradients, num_threads, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.masks import BlockMask

CPU = [Target("cpu", dtype) for dtype in (torch.float32, torch.bfloat16)]
LENGTHS = (340, 16500)
HEAD_DIM = 16
# Rows of blocks that see (nearly) all of the keys, among some that see few.
LONG = ((64, 128), (192, 320))


def drawn_pairs(heads: int = 1) -> Tensor:
    seqlen_q, seqlen_k = LENGTHS
    few = torch.rand(heads, -(-seqlen_q // 64), -(-seqlen_k // 64)) < 0.02
    pairs = few.repeat_interleave(64, 1).repeat_interleave(64, 2)[:, :seqlen_q, :seqlen_k]
    for begin, end in LONG:
        pairs[:, begin:end] = True
    pairs &= torch.rand(pairs.shape) < 0.9
    pairs[:, 3] = pairs[:, 70] = False
    return pairs[None]


def drawn_qkv(target: Target, batch: int = 1, heads: tuple[int, int] = (2, 1)) -> list[Tensor]:
    (seqlen_q, seqlen_k), (num_heads, num_heads_kv) = LENGTHS, heads
    q = target.tensor(batch, seqlen_q, num_heads, HEAD_DIM)
    return [q, *(target.tensor(batch, seqlen_k, num_heads_kv, HEAD_DIM) for _ in "kv")]


def gradients(qkv: list[Tensor], mask: BlockMask, **options: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    sink = options.get("sink")
    if sink is not None:
        leaves.append(sink.requires_grad_())
    out, lse = flash_attn_func(
        *leaves[:3], block_mask=mask, deterministic=True, return_lse=True, **options
    )
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(x.shape[1:], generator=generator).to(x.dtype) for x in (out, lse)]
    grads = [g.expand_as(x).contiguous() for g, x in zip(grads, (out, lse), strict=True)]
    return torch.autograd.grad((out, lse), leaves, grads)


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, x, y in zip(("dq", "dk", "dv", "dsink"), actual, expected, strict=False):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "options",
    [{}, {"sink": True}, {"dropout_p": 0.3}, {"softcap": 3.0, "softmax_scale": 1.0}],
    ids=str,
)
@targets(CPU)
def test_gradients(options: dict[str, Any], target: Target) -> None:
    if "sink" in options:
        options = {"sink": 8 + torch.randn(2)}
    check_dense_gradients(
        *drawn_qkv(target), block_mask=BlockMask.from_dense(drawn_pairs()), **options
    )


@targets([*CPU, Target("cpu", torch.float64)])
def test_gradients_of_large_logits(target: Target) -> None:
    """Rows whose softmax is computed once more, from the keys of all splits."""
    q, k, v = drawn_qkv(target)
    q = 64 * q
    mask = BlockMask.from_dense(drawn_pairs())
    _, lse = flash_attn_func(q, k, v, block_mask=mask, return_lse=True)
    assert lse.max() > 200
    check_dense_gradients(q, k, v, block_mask=mask)


@targets(CPU)
def test_heads_that_list_many(target: Target) -> None:
    """Every head is cut by its own list, with the bits that it has alone."""
    few, many = drawn_pairs(1), drawn_pairs(1)
    for begin, end in LONG:
        few[..., begin:end, 5000:] = False
    masks = [BlockMask.from_dense(each) for each in (few, many)]
    both = BlockMask.from_dense(torch.cat([few, many], 1))
    qkv = drawn_qkv(target, heads=(2, 2))
    sink = 8 + torch.randn(2)
    grads = gradients(qkv, both, sink=sink)
    for head, mask in enumerate(masks):
        alone = [x[:, :, head : head + 1] for x in qkv]
        own = gradients_of_head(alone, mask, sink, head)
        assert_same_bits(own[:3], tuple(x[:, :, head : head + 1] for x in grads[:3]))
        assert own[3] == grads[3][head]
    check_dense_gradients(*qkv, block_mask=both)


def gradients_of_head(
    qkv: list[Tensor], mask: BlockMask, sink: Tensor, head: int
) -> tuple[Tensor, ...]:
    """With the part of `gradients` of two heads that is this head's."""
    leaves = [*(x.detach().requires_grad_() for x in qkv), sink[head : head + 1].detach()]
    leaves[3].requires_grad_()
    out, lse = flash_attn_func(
        *leaves[:3], sink=leaves[3], block_mask=mask, deterministic=True, return_lse=True
    )
    generator = torch.Generator().manual_seed(3)
    grad_out = torch.randn(LENGTHS[0], 2, HEAD_DIM, generator=generator).to(out.dtype)
    grad_lse = torch.randn(2, LENGTHS[0], generator=generator)
    grads = [grad_out[None, :, head : head + 1].contiguous(), grad_lse[None, head : head + 1]]
    return torch.autograd.grad((out, lse), leaves, grads)


@pytest.mark.parametrize("scale", [1, 64])
@targets(CPU)
def test_the_same_bits_with_any_number_of_threads(scale: int, target: Target) -> None:
    qkv = drawn_qkv(target, heads=(2, 2))
    qkv[0] = scale * qkv[0]
    mask = BlockMask.from_dense(drawn_pairs())
    found = []
    for count in (1, 2, 5, 5):
        with num_threads(count):
            found.append(gradients(qkv, mask, sink=torch.zeros(2)))
    for each in found[1:]:
        assert_same_bits(each, found[0])


@targets(CPU)
def test_the_rest_of_the_batch_does_not_matter(target: Target) -> None:
    qkv = drawn_qkv(target, batch=3)
    mask = BlockMask.from_dense(drawn_pairs())
    expected = gradients([x[1:2] for x in qkv], mask)
    for count in (1, 3):
        with num_threads(count):
            found = gradients(qkv, mask)
        assert_same_bits(tuple(x[1:2] for x in found), expected)


@targets(CPU)
def test_full_blocks_listed_as_partial(target: Target) -> None:
    pairs = torch.zeros(LENGTHS, dtype=torch.bool)
    pairs[100:300] = True
    mask = BlockMask.from_dense(pairs)
    assert (mask.tiles == 0).any()
    bits = torch.cat([mask.bits, torch.full((1, 64), -1)])
    tiles = torch.where(mask.tiles == 0, len(bits) - 1, mask.tiles).int()
    partial = BlockMask(*LENGTHS, mask.row_offsets, mask.cols, tiles, bits)
    qkv = drawn_qkv(target)
    assert_same_bits(gradients(qkv, partial), gradients(qkv, mask))

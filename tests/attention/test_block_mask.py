"""`block_mask` of dense calls: against the reference, bit for bit, and what it goes with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import TARGETS as ALL_TARGETS
from support import Target, check_dense, check_dense_gradients, mask_arguments, num_threads, targets
from torch import Tensor

from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from flash_attn2.masks import BlockMask, causal, window
from flash_attn2.reference import attention_reference

# The emulator runs the rest of its dtypes and head dims in tests/sm80.
TARGETS = [
    target
    for target in ALL_TARGETS
    if target.backend != "sm80-emulated" or target.dtype is torch.bfloat16
]
CPU = [
    target
    for target in TARGETS
    if target.backend == "cpu" and target.dtype in (torch.float32, torch.bfloat16)
]
EMULATED_TARGETS = [target for target in TARGETS if target.backend == "sm80-emulated"]
HEAD_DIM = 32


def drawn_pairs(batch: int, heads: int, seqlen_q: int, seqlen_k: int) -> Tensor:
    """Which pairs are visible: blocks with none, some and all of them; rows and columns without."""
    size = batch, heads, -(-seqlen_q // 64), -(-seqlen_k // 64)
    kind = torch.randint(0, 3, size).repeat_interleave(64, 2).repeat_interleave(64, 3)
    kind = kind[:, :, :seqlen_q, :seqlen_k]
    pairs = (kind == 2) | ((kind == 1) & (torch.rand(kind.shape) < 0.4))
    pairs[:, :, 1 : min(40, seqlen_q) : 3] = False
    pairs[..., 2 : min(40, seqlen_k) : 5] = False
    return pairs


def drawn_mask(*size: int) -> BlockMask:
    return BlockMask.from_dense(drawn_pairs(*size))


def full_as_partial(mask: BlockMask) -> BlockMask:
    """The same pairs, with no block listed as full."""
    bits = torch.cat([mask.bits, torch.full((1, 64), -1)])
    tiles = torch.where(mask.tiles == 0, len(bits) - 1, mask.tiles).int()
    lengths = mask.seqlen_q, mask.seqlen_k
    return BlockMask(*lengths, mask.row_offsets, mask.cols, tiles, bits)


def causal_pairs(seqlen_q: int, seqlen_k: int) -> Tensor:
    return torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril(seqlen_k - seqlen_q)


def drawn_qkv(
    target: Target, batch: int, lengths: tuple[int, int], heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    (seqlen_q, seqlen_k), (num_heads, num_heads_kv) = lengths, heads
    q = target.tensor(batch, seqlen_q, num_heads, HEAD_DIM)
    return q, *(target.tensor(batch, seqlen_k, num_heads_kv, HEAD_DIM) for _ in "kv")


# Lengths; heads of q and k; batch and heads of the mask; options.
LENGTHS = (200, 333)
HEADS = (4, 2)
NOTHING: dict[str, Any] = {}
CASES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], dict[str, Any]]] = {
    "plain": (LENGTHS, HEADS, (1, 1), NOTHING),
    "mha": (LENGTHS, (2, 2), (1, 2), NOTHING),
    "mqa": (LENGTHS, (3, 1), (2, 3), NOTHING),
    "of_each_kv_head": (LENGTHS, HEADS, (1, 2), NOTHING),
    "of_each_head": (LENGTHS, HEADS, (1, 4), NOTHING),
    "of_each_sequence": (LENGTHS, HEADS, (2, 1), NOTHING),
    "of_each_sequence_and_kv_head": (LENGTHS, HEADS, (2, 2), NOTHING),
    "of_everything": (LENGTHS, HEADS, (2, 4), NOTHING),
    "one_query": ((1, 333), HEADS, (2, 4), NOTHING),
    "one_key": ((200, 1), HEADS, (2, 4), NOTHING),
    "one_of_both": ((1, 1), HEADS, (2, 4), NOTHING),
    "within_a_block": ((63, 63), HEADS, (2, 4), NOTHING),
    "one_block": ((64, 64), HEADS, (2, 4), NOTHING),
    "beyond_a_block": ((65, 65), HEADS, (2, 4), NOTHING),
    "few_queries": ((5, 700), HEADS, (2, 4), NOTHING),
    "more_queries": ((333, 63), HEADS, (2, 4), NOTHING),
    "square": ((256, 256), HEADS, (1, 1), NOTHING),
    "longer": ((450, 900), (2, 1), (1, 2), NOTHING),
    "scale": (LENGTHS, HEADS, (1, 1), {"softmax_scale": 1.0}),
    "softcap": (LENGTHS, HEADS, (1, 2), {"softcap": 1.5, "softmax_scale": 1.0}),
    "alibi": (LENGTHS, HEADS, (2, 1), {"alibi_slopes": True}),
    "sink": (LENGTHS, HEADS, (1, 4), {"sink": True}),
    "dropout": (LENGTHS, HEADS, (2, 2), {"dropout_p": 0.3}),
    "deterministic": (LENGTHS, HEADS, (1, 2), {"deterministic": True}),
    "everything": (
        (333, 200),
        HEADS,
        (2, 4),
        {"softcap": 5.0, "alibi_slopes": True, "sink": True, "dropout_p": 0.2},
    ),
}
# What is worth the emulator's time.
EMULATED = (
    "of_everything",
    "one_query",
    "one_key",
    "one_of_both",
    "beyond_a_block",
    "few_queries",
    "more_queries",
    "dropout",
    "deterministic",
    "everything",
)
RUNS = [
    pytest.param(target, name, id=f"{target}-{name}")
    for target in TARGETS
    for name in CASES
    if target.backend != "sm80-emulated" or name in EMULATED
]
each_case = pytest.mark.parametrize(("target", "name"), RUNS, indirect=["target"])


def problem(name: str, target: Target) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    lengths, heads, (batch, mask_heads), options = CASES[name]
    options = options | {"block_mask": drawn_mask(batch, mask_heads, *lengths)}
    if "alibi_slopes" in options:
        options["alibi_slopes"] = 0.3 * torch.rand(2, heads[0])
    if "sink" in options:
        options["sink"] = 2 * torch.randn(heads[0])
    return drawn_qkv(target, 2, lengths, heads), options


@each_case
def test_forward(name: str, target: Target) -> None:
    qkv, options = problem(name, target)
    options.pop("deterministic", None)
    check_dense(*qkv, **options)


@each_case
def test_gradients(name: str, target: Target) -> None:
    qkv, options = problem(name, target)
    check_dense_gradients(*qkv, **options)


@pytest.mark.parametrize("head_dim", [8, 40, 64, 100, 128, 256])
@targets(CPU)
def test_head_dims(head_dim: int, target: Target) -> None:
    mask = drawn_mask(1, 2, 130, 200)
    q = target.tensor(1, 130, 4, head_dim)
    k, v = (target.tensor(1, 200, 2, head_dim) for _ in "kv")
    check_dense(q, k, v, block_mask=mask)
    check_dense_gradients(q, k, v, block_mask=mask)


def test_reference_means_what_the_dense_mask_says() -> None:
    """An oracle of its own: a softmax over the pairs, by hand."""
    pairs = drawn_pairs(2, 2, 70, 130)
    q, k, v = (torch.randn(2, n, 4, 8, dtype=torch.float64) for n in (70, 130, 130))
    out, lse, _ = attention_reference(q, k, v, block_mask=BlockMask.from_dense(pairs))
    s = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    weights = s.exp() * pairs.repeat_interleave(2, 1)
    total = weights.sum(-1, keepdim=True)
    expected = torch.einsum("bhij,bjhd->bihd", weights / total.clamp(min=1e-300), v)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, total.squeeze(-1).log())


@targets(CPU + EMULATED_TARGETS)
def test_rows_and_columns_without_pairs(target: Target) -> None:
    pairs = drawn_pairs(1, 1, 200, 333)
    pairs[..., 64:128, :] = False
    pairs[..., 192:256] = False
    no_row, no_column = ~pairs.any(-1)[0, 0], ~pairs.any(-2)[0, 0]
    leaves = [x.requires_grad_() for x in drawn_qkv(target, 2, LENGTHS, HEADS)]
    mask = BlockMask.from_dense(pairs)
    out, lse = flash_attn_func(*leaves, block_mask=mask, return_lse=True)
    grads = (torch.randn_like(out), torch.randn_like(lse))
    grad_q, grad_k, grad_v = torch.autograd.grad((out, lse), leaves, grads)
    assert (out[:, no_row] == 0).all()
    assert (lse[..., no_row] == -torch.inf).all()
    assert lse[..., ~no_row].isfinite().all()
    assert (grad_q[:, no_row] == 0).all()
    assert (grad_k[:, no_column] == 0).all()
    assert (grad_v[:, no_column] == 0).all()
    assert (grad_v[:, ~no_column] != 0).any(-1).all()


@pytest.mark.parametrize("sink", [False, True])
@targets(CPU + EMULATED_TARGETS)
def test_nothing_is_visible(sink: bool, target: Target) -> None:
    mask = BlockMask.from_dense(torch.zeros(200, 333, dtype=torch.bool))
    assert mask.cols.numel() == 0
    leaves = [x.requires_grad_() for x in drawn_qkv(target, 2, LENGTHS, HEADS)]
    logits = torch.randn(4) if sink else None
    out, lse = flash_attn_func(*leaves, sink=logits, block_mask=mask, return_lse=True)
    expected = torch.full((4,), -torch.inf) if logits is None else logits
    torch.testing.assert_close(lse, expected[:, None].expand(lse.shape))
    grads = torch.autograd.grad(out, leaves, torch.randn_like(out))
    assert all((x == 0).all() for x in (out, *grads))


@pytest.mark.parametrize("sizes", [(0, 200, 333), (2, 0, 333), (2, 200, 0)])
def test_empty_tensors(sizes: tuple[int, int, int]) -> None:
    batch, seqlen_q, seqlen_k = sizes
    mask = BlockMask.from_dense(torch.ones(seqlen_q, seqlen_k, dtype=torch.bool))
    q = torch.randn(batch, seqlen_q, 4, 8, requires_grad=True)
    k = torch.randn(batch, seqlen_k, 2, 8, requires_grad=True)
    out, lse = flash_attn_func(q, k, k, block_mask=mask, return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = torch.autograd.grad(out.sum(), (q, k))
    assert all((x == 0).all() for x in grads)


def test_values_that_no_query_sees_do_not_count() -> None:
    """NaN in keys that only unlisted blocks hold."""
    pairs = torch.ones(200, 333, dtype=torch.bool)
    pairs[:, 64:128] = False
    mask = BlockMask.from_dense(pairs)
    q, k, v = drawn_qkv(Target("cpu", torch.float32), 1, LENGTHS, HEADS)
    expected = results(q, k, v, block_mask=mask)
    k[:, 64:128] = v[:, 64:128] = torch.nan
    for x, y in zip(results(q, k, v, block_mask=mask), expected, strict=True):
        assert torch.equal(x, y)


# Bits.


def results(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    """out, lse and the gradients of q, k and v through both."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = flash_attn_func(*leaves, return_lse=True, **options)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (out, lse)]
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, grads)]


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"dropout_p": 0.3}], ids=str)
@targets(TARGETS)
def test_full_blocks_listed_as_partial(options: dict[str, Any], target: Target) -> None:
    mask = drawn_mask(2, 2, *LENGTHS)
    assert (mask.tiles == 0).sum() > 2
    found = []
    for each in (mask, full_as_partial(mask)):
        torch.manual_seed(1)
        qkv = drawn_qkv(target, 2, LENGTHS, HEADS)
        found.append(results(*qkv, **options, deterministic=True, block_mask=each))
    assert_same_bits(*found)


@pytest.mark.parametrize("lengths", [(64, 64), (200, 333), (333, 200), (450, 450)])
@targets(TARGETS)
def test_causal_as_a_list(lengths: tuple[int, int], target: Target) -> None:
    """The same bits on the CPU, but for a handful of queries, whose own kernel takes no lists. The
    tiles of CUDA kernels differ.
    """
    qkv = drawn_qkv(target, 2, lengths, HEADS)
    listed = BlockMask.from_dense(causal_pairs(*lengths))
    expected = results(*qkv, deterministic=True, causal=True)
    for mask in (listed, full_as_partial(listed)):
        actual = results(*qkv, deterministic=True, block_mask=mask)
        if target.backend == "cpu":
            assert_same_bits(actual, expected)
        else:
            torch.testing.assert_close(actual, expected, atol=0.06, rtol=0.02)


@targets(CPU)
def test_causal_as_a_list_of_many(target: Target) -> None:
    """Rows that list more than 256 blocks have their keys cut, wherever they stand."""
    lengths = (300, 16500)
    below_the_cut = 128
    q, k, v = drawn_qkv(target, 1, lengths, (2, 1))
    listed = causal().build(*lengths)
    assert listed.row_offsets.diff().flatten().tolist() == [255, 256, 257, 258, 258]
    out, lse = flash_attn_func(q, k, v, block_mask=listed, return_lse=True)
    dense = flash_attn_func(q, k, v, causal=True, return_lse=True)
    assert torch.equal(out[:, :below_the_cut], dense[0][:, :below_the_cut])
    assert torch.equal(lse[..., :below_the_cut], dense[1][..., :below_the_cut])
    assert not torch.equal(lse, dense[1])
    check_dense(q, k, v, block_mask=listed)
    # The same rows alone, and beside other sequences and heads.
    rows = slice(192, 300)
    alone = BlockMask.from_dense(causal_pairs(*lengths)[rows].repeat(2, 1))
    twice = q[:, rows].repeat(1, 2, 1, 1)
    found = flash_attn_func(twice, k, v, block_mask=alone)
    assert torch.equal(found[:, : 300 - 192], out[:, rows])
    for count in (1, 3):
        with num_threads(count):
            both = flash_attn_func(
                *(torch.cat([x, x]) for x in (q, k, v)), block_mask=listed, return_lse=True
            )
        assert torch.equal(both[0][1:], out)
        assert torch.equal(both[1][1:], lse)


@targets(CPU)
def test_heads_that_list_many(target: Target) -> None:
    """Every head is cut by its own list."""
    lengths = (150, 16500)
    q, k, v = drawn_qkv(target, 1, lengths, (2, 2))
    few = window(100, 100)
    both = BlockMask.from_dense(
        torch.stack([m.build(*lengths).to_dense()[0, 0] for m in (few, ~few)])[None]
    )
    out, lse = flash_attn_func(q, k, v, block_mask=both, return_lse=True)
    for head, pattern in enumerate((few, ~few)):
        q1, k1, v1 = (x[:, :, head : head + 1] for x in (q, k, v))
        one = flash_attn_func(q1, k1, v1, block_mask=pattern.build(*lengths), return_lse=True)
        assert torch.equal(one[0][:, :, 0], out[:, :, head])
        assert torch.equal(one[1][:, 0], lse[:, head])
    check_dense(q, k, v, block_mask=both)


@targets(CPU)
def test_everything_as_a_list(target: Target) -> None:
    qkv = drawn_qkv(target, 2, LENGTHS, HEADS)
    mask = BlockMask.from_dense(torch.ones(LENGTHS, dtype=torch.bool))
    assert_same_bits(
        results(*qkv, deterministic=True, block_mask=mask), results(*qkv, deterministic=True)
    )


@targets(CPU)
def test_the_same_bits_with_any_number_of_threads(target: Target) -> None:
    qkv = drawn_qkv(target, 1, (450, 700), HEADS)
    mask = drawn_mask(1, 4, 450, 700)
    found = []
    for count in (1, 2, 2, 3):
        with num_threads(count):
            found.append(results(*qkv, deterministic=True, block_mask=mask))
    for each in found[1:]:
        assert_same_bits(each, found[0])


@targets(CPU)
def test_the_rest_of_the_batch_does_not_matter(target: Target) -> None:
    pairs = drawn_pairs(3, 4, *LENGTHS)
    qkv = drawn_qkv(target, 3, LENGTHS, HEADS)
    options = {"deterministic": True, "softcap": 5.0}
    out, lse = flash_attn_func(
        *qkv, block_mask=BlockMask.from_dense(pairs), return_lse=True, **options
    )
    for b in range(3):
        mask = BlockMask.from_dense(pairs[b : b + 1])
        alone = (x[b : b + 1] for x in qkv)
        out_b, lse_b = flash_attn_func(*alone, block_mask=mask, return_lse=True, **options)
        assert torch.equal(out_b, out[b : b + 1])
        assert torch.equal(lse_b, lse[b : b + 1])


@targets(CPU)
def test_one_mask_for_all_or_one_for_each(target: Target) -> None:
    pairs = drawn_pairs(1, 1, *LENGTHS)
    qkv = drawn_qkv(target, 2, LENGTHS, HEADS)
    masks = (BlockMask.from_dense(pairs.expand(b, h, -1, -1)) for b in (1, 2) for h in (1, 2, 4))
    first, *others = [results(*qkv, deterministic=True, block_mask=mask) for mask in masks]
    for each in others:
        assert_same_bits(each, first)


# What it goes with.


@targets(CPU)
def test_packed_tensors(target: Target) -> None:
    q, k, v = drawn_qkv(target, 2, LENGTHS, HEADS)
    mask = drawn_mask(2, 4, *LENGTHS)
    kv = torch.stack([k, v], 2)
    out = flash_attn_kvpacked_func(q, kv, block_mask=mask)
    assert torch.equal(out, flash_attn_func(q, k, v, block_mask=mask))
    qkv = target.tensor(2, 200, 3, 2, HEAD_DIM)
    mask = drawn_mask(1, 2, 200, 200)
    out = flash_attn_qkvpacked_func(qkv, block_mask=mask)
    assert torch.equal(out, flash_attn_func(*qkv.unbind(2), block_mask=mask))


@targets(CPU)
def test_probs(target: Target) -> None:
    q, k, v = drawn_qkv(target, 2, LENGTHS, HEADS)
    pairs = drawn_pairs(1, 2, *LENGTHS)
    mask, visible = BlockMask.from_dense(pairs), pairs.repeat_interleave(2, 1)
    probs = attention_probs(q, k, block_mask=mask)
    assert torch.equal(probs > 0, visible.expand(probs.shape))
    _, _, probs = flash_attn_func(q, k, v, 0.3, block_mask=mask, return_attn_probs=True)
    assert torch.equal(probs != 0, visible.expand(probs.shape))
    assert (probs < 0).any()


@targets(CPU)
def test_any_strides(target: Target) -> None:
    q, k, v = drawn_qkv(target, 2, LENGTHS, HEADS)
    mask = drawn_mask(2, 2, *LENGTHS)
    expected = results(q, k, v, deterministic=True, block_mask=mask)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    k, v = (x.repeat_interleave(2, -1)[..., ::2] for x in (k, v))
    assert_same_bits(results(q, k, v, deterministic=True, block_mask=mask), expected)


def test_op_takes_any_strides() -> None:
    q, k, v = drawn_qkv(Target("cpu", torch.float32), 2, LENGTHS, HEADS)
    mask = drawn_mask(2, 2, *LENGTHS)
    given = {name: x.repeat_interleave(2, -1)[..., ::2] for name, x in mask_arguments(mask).items()}
    given["block_mask_offsets"] = mask.row_offsets.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(x.is_contiguous() for x in given.values())
    out, *_ = torch.ops.flash_attn2.forward(q, k, v, **given)
    assert torch.equal(out, flash_attn_func(q, k, v, block_mask=mask))


def test_a_mask_expanded_over_the_batch() -> None:
    q, k, v = drawn_qkv(Target("cpu", torch.float32), 2, LENGTHS, HEADS)
    mask = drawn_mask(1, 2, *LENGTHS)
    given = mask_arguments(mask) | {"block_mask_offsets": mask.row_offsets.expand(2, -1, -1)}
    out, *_ = torch.ops.flash_attn2.forward(q, k, v, **given)
    assert torch.equal(out, flash_attn_func(q, k, v, block_mask=mask))

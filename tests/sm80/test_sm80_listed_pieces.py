"""Rows and columns of a block mask that the sm80 kernels cut into pieces, in the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import (
    Target,
    check_dense,
    check_dense_gradients,
    emulator_options,
)
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.masks import BlockMask

NAME = "sm80-emulated"
TARGET = Target(NAME, torch.bfloat16)
HEAD_DIM = 64
# Lists of 128 entries are cut. Those of 128 queries have that, or of 64 keys, beside a few others.
LONG_ROWS = (3 * 128 + 70, 66 * 64 + 7)
LONG_COLUMNS = (130 * 64 + 5, 3 * 128 + 70)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "softcap": 4.0,
        "alibi_slopes": torch.tensor([0.3, 0.1]),
        "sink": torch.tensor([1.0, -2.0]),
        "dropout_p": 0.2,
    },
}


def options_of(name: str, lengths: tuple[int, int]) -> dict[str, Any]:
    if name != "biases":
        return OPTIONS[name]
    # Of each head, with rows of nothing, and by diagonals for both.
    torch.manual_seed(6)
    bias = torch.randn(2, *lengths)
    bias[0, 3] = -torch.inf
    return {"bias": bias, "relative_bias": torch.randn(1, sum(lengths) - 1)}


pytestmark = pytest.mark.usefixtures("emulated")


def pairs_of(lengths: tuple[int, int], seed: int, long: bool = True) -> Tensor:
    """A few blocks, some of them partial, and those of the long rows or columns."""
    generator = torch.Generator().manual_seed(seed)
    size = [-(-n // 64) for n in lengths]
    blocks = torch.rand(size, generator=generator) < 0.04
    if long and lengths == LONG_ROWS:
        blocks[:2] = True
    if long and lengths == LONG_COLUMNS:
        blocks[:, 0] = True
    pairs = blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)[: lengths[0], : lengths[1]]
    thin = torch.rand(size, generator=generator) < 0.3
    thin = thin.repeat_interleave(64, 0).repeat_interleave(64, 1)[: lengths[0], : lengths[1]]
    return pairs & ~(thin & (torch.rand(pairs.shape, generator=generator) < 0.5))


def mask_of(lengths: tuple[int, int], *long: bool) -> BlockMask:
    """With a head for each."""
    return BlockMask.from_dense(
        torch.stack([pairs_of(lengths, seed, each) for seed, each in enumerate(long)])[None]
    )


def drawn_qkv(
    lengths: tuple[int, int], heads: tuple[int, int] = (2, 1), target: Target = TARGET
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    q = target.tensor(1, lengths[0], heads[0], HEAD_DIM)
    return q, *(target.tensor(1, lengths[1], heads[1], HEAD_DIM) for _ in "kv")


def target_of(name: str) -> Target:
    """Where nothing modifies scores, the other type, whose kernels are others."""
    return Target(NAME, torch.float16) if name == "plain" else TARGET


def results(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    """out, lse and the gradients of q, k and v through both."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = flash_attn_func(*leaves, return_lse=True, **options)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(x.shape[1:], generator=generator).to(x.dtype) for x in (out, lse)]
    grads = [x.expand(len(q), *x.shape).contiguous() for x in grads]
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, grads)]


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    ("long", "name"),
    [((True,), "plain"), ((False, True), "everything"), ((False, True), "biases")],
    ids=str,
)
def test_long_rows(long: tuple[bool, ...], name: str) -> None:
    options = options_of(name, LONG_ROWS) | {"block_mask": mask_of(LONG_ROWS, *long)}
    qkv = drawn_qkv(LONG_ROWS, target=target_of(name))
    with emulator_options("ctas=3,async=random,seed=4"):
        check_dense(*qkv, **options)
    check_dense_gradients(*qkv, **options)


@pytest.mark.parametrize(
    ("heads", "long", "name"),
    [
        (1, (True,), "plain"),
        (1, (False, True), "plain"),
        (1, (True, False), "everything"),
        (2, (True, False), "everything"),
        (1, (True, False), "biases"),
    ],
    ids=str,
)
def test_long_columns(heads: int, long: tuple[bool, ...], name: str) -> None:
    """Of masks for all heads, for query heads of a group and for KV heads."""
    ordered = name != "everything"
    options = options_of(name, LONG_COLUMNS) | {
        "block_mask": mask_of(LONG_COLUMNS, *long),
        "deterministic": ordered,
    }
    sums = "ordered" if ordered else "free"
    with emulator_options(f"ctas=3,async=random,seed=4,sums={sums}"):
        check_dense_gradients(*drawn_qkv(LONG_COLUMNS, (2, heads), target_of(name)), **options)


def test_nothing_past_the_last_piece_is_read() -> None:
    """Which ends where the memory of pieces does; five are loaded by four at a time."""
    mask = BlockMask.from_dense(torch.ones(1, 1, 128, 5 * 32 * 64, dtype=torch.bool))
    check_dense(*drawn_qkv((mask.seqlen_q, mask.seqlen_k), (1, 1)), block_mask=mask)


def test_pairs_of_warps_that_share_rows() -> None:
    q = TARGET.tensor(1, LONG_ROWS[0], 1, 256)
    k, v = (TARGET.tensor(1, LONG_ROWS[1], 1, 256) for _ in "kv")
    with emulator_options("ctas=2,async=random,seed=4"):
        check_dense(q, k, v, block_mask=mask_of(LONG_ROWS, True))


def test_half_blocks_that_wait_for_others() -> None:
    mask = BlockMask.from_dense(pairs_of(LONG_COLUMNS, 0)[:, :100])
    q = TARGET.tensor(1, LONG_COLUMNS[0], 1, 256)
    k, v = (TARGET.tensor(1, 100, 1, 256) for _ in "kv")
    with emulator_options("device=sm86,ctas=3,async=random,seed=4,sums=ordered"):
        check_dense_gradients(q, k, v, block_mask=mask, deterministic=True)


@pytest.mark.parametrize("lengths", [LONG_ROWS, LONG_COLUMNS], ids=["rows", "columns"])
def test_bits(lengths: tuple[int, int]) -> None:
    """They do not depend on the rest of the batch, on how masks are shared, on the schedule, or on
    whether full blocks are listed as partial ones.
    """
    q, k, v = drawn_qkv(lengths)
    one = mask_of(lengths, True)
    with emulator_options("ctas=1,sums=ordered"):
        expected = results(q, k, v, block_mask=one, deterministic=True)
    pairs = one.to_dense()
    few = pairs_of(lengths, 7, False)[None, None]
    bits = torch.cat([one.bits, torch.full((1, 64), -1)])
    tiles = torch.where(one.tiles == 0, len(bits) - 1, one.tiles).int()
    partial = BlockMask(*lengths, one.row_offsets, one.cols, tiles, bits)
    of_heads = BlockMask.from_dense(pairs.expand(1, 2, -1, -1))
    with emulator_options("ctas=4,async=random,seed=2,sums=ordered"):
        for mask in (partial, of_heads):
            assert_same_bits(results(q, k, v, block_mask=mask, deterministic=True), expected)
        batch = [x.expand(2, -1, -1, -1).contiguous() for x in (q, k, v)]
        own = BlockMask.from_dense(torch.cat([few, pairs]))
        found = results(*batch, block_mask=own, deterministic=True)
    assert_same_bits([x[1:] for x in found], expected)


def sectors_written(lengths: tuple[int, int], long: bool) -> dict[str, float]:
    """To each tensor, by what adds up pieces."""
    module = backends.load(NAME).module
    module.reset_counters()
    results(*drawn_qkv(lengths), block_mask=mask_of(lengths, long))
    written: dict[str, float] = {}
    for kernel, counters in module.counters_by_kernel().items():
        if "SumPieces" not in kernel and "SumColumns" not in kernel:
            continue
        for name in ("out", "grad_k", "grad_v"):
            key = f"write.{name}.distinct_sectors"
            written[name] = written.get(name, 0) + counters.get(key, 0)
    return {name: sectors for name, sectors in written.items() if sectors > 0}


def test_what_is_cut() -> None:
    """A tile of 128 queries, or of 128 keys."""
    tile = 128 * HEAD_DIM * 2 / 32
    assert sectors_written(LONG_ROWS, True) == {"out": 2 * tile}
    assert sectors_written(LONG_COLUMNS, True) == {"grad_k": tile, "grad_v": tile}
    assert sectors_written(LONG_ROWS, False) == {}
    assert sectors_written(LONG_COLUMNS, False) == {}


def test_what_is_not_cut_has_the_bits_of_a_mask_without_long_lists() -> None:
    q, k, v = drawn_qkv(LONG_ROWS)
    short = BlockMask.from_dense(pairs_of(LONG_ROWS, 0, False))
    cut = flash_attn_func(q, k, v, block_mask=mask_of(LONG_ROWS, True))
    assert torch.equal(flash_attn_func(q, k, v, block_mask=short)[:, 128:], cut[:, 128:])


@pytest.mark.parametrize("lengths", [LONG_ROWS, LONG_COLUMNS], ids=["rows", "columns"])
def test_lists_that_lead_anywhere(lengths: tuple[int, int]) -> None:
    """No check has seen them, and nothing is read or written outside of the tensors."""
    q, k, v = drawn_qkv(lengths)
    generator = torch.Generator().manual_seed(11)
    for name, share in (("row_offsets", 0.01), ("row_offsets", 0.3), ("cols", 0.02)):
        mask = mask_of(lengths, True, False)
        flat = getattr(mask, name).view(-1)
        wrong = torch.rand(len(flat), generator=generator) < share
        wrong[-1] = wrong[len(flat) // 2] = True
        far = torch.randint(-(2**31), 2**31 - 1, (len(flat),), generator=generator)
        near = torch.randint(-2, 200, (len(flat),), generator=generator)
        values = torch.where(torch.rand(len(flat), generator=generator) < 0.5, far, near)
        flat[wrong] = values[wrong].to(flat.dtype)
        results(q, k, v, block_mask=mask, deterministic=share == 0.01)


def test_lists_that_begin_before_the_first_entry() -> None:
    """Have those from the first one on, and are cut as if they began there."""
    q, k, v = drawn_qkv(LONG_ROWS)
    mask = mask_of(LONG_ROWS, True)
    expected = flash_attn_func(q, k, v, block_mask=mask)
    mask.row_offsets[..., 0] = -(2**31)
    assert torch.equal(flash_attn_func(q, k, v, block_mask=mask), expected)


def test_lists_that_overlap_are_not_cut() -> None:
    """Offsets that go back and forth: every other block of queries has all keys, and all of them
    one list.
    """
    q, k, v = drawn_qkv(LONG_ROWS)
    rows, cols = (-(-n // 64) for n in LONG_ROWS)
    mask = mask_of(LONG_ROWS, True)
    mask.row_offsets[:] = torch.arange(rows + 1) % 2 * cols
    mask.cols[:cols] = torch.arange(cols)
    mask.tiles[:cols] = 0
    seen = torch.arange(LONG_ROWS[0])[:, None] // 64 % 2 == 0
    expected = BlockMask.from_dense(seen.expand(LONG_ROWS))
    torch.testing.assert_close(
        flash_attn_func(q, k, v, block_mask=mask), flash_attn_func(q, k, v, block_mask=expected)
    )

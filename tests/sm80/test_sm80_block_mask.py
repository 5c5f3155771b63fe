"""The sm80 kernels with a block mask in the emulator: every variant that is built, long lists, the
order of sums, and what the kernels need not do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BUCKETS
from support import (
    Target,
    check_dense,
    check_dense_gradients,
    cpu_tensors_on,
    emulator_options,
)
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.masks import BlockMask

NAME = "sm80-emulated"
TARGET = Target(NAME, torch.bfloat16)
OPTIONS: dict[str, dict[str, Any]] = {
    "listed": {"sink": torch.tensor([0.5, -1.0])},
    "modified": {"softcap": 4.0, "alibi_slopes": torch.tensor([0.3, 0.1])},
    "dropout": {"dropout_p": 0.2, "sink": torch.tensor([1.0, -2.0])},
}
DEVICES = [*(("sm80", d) for d in BUCKETS), *(("sm86", d) for d in BUCKETS if d > 96)]

pytestmark = pytest.mark.usefixtures("emulated")


def drawn_blocks(rows: int, cols: int, share: float, seed: int) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < share


def pairs_of(blocks: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """All pairs of the blocks."""
    return blocks.repeat_interleave(64, -2).repeat_interleave(64, -1)[..., :seqlen_q, :seqlen_k]


def drawn_mask(seqlen_q: int, seqlen_k: int, heads: int = 1) -> BlockMask:
    """Blocks of all kinds."""
    size = heads, -(-seqlen_q // 64), -(-seqlen_k // 64)
    kinds = torch.randint(0, 3, size)
    some = torch.rand(heads, seqlen_q, seqlen_k) < 0.4
    pairs = pairs_of(kinds == 2, seqlen_q, seqlen_k)
    return BlockMask.from_dense((pairs | (pairs_of(kinds == 1, seqlen_q, seqlen_k) & some))[None])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("device", "head_dim"), DEVICES)
def test_every_kernel(device: str, head_dim: int, name: str) -> None:
    """With several CTAs at once, under a random schedule and random copy completion."""
    ordered = name == "modified"
    target = Target(NAME, torch.float16 if ordered else torch.bfloat16)
    q = target.tensor(1, 134, 2, head_dim)
    k, v = (target.tensor(1, 150, 1, head_dim) for _ in "kv")
    options = OPTIONS[name] | {"block_mask": drawn_mask(134, 150, 2), "deterministic": ordered}
    sums = "ordered" if ordered else "free"
    with emulator_options(f"device={device},ctas=3,async=random,seed={head_dim},sums={sums}"):
        check_dense_gradients(q, k, v, **options)
        del options["deterministic"]
        check_dense(q, k, v, **options)


@pytest.mark.parametrize("shares", [(0.9, 0.15), (1.0, 1.0), (0.3, 0.0)], ids=str)
def test_long_lists(shares: tuple[float, float]) -> None:
    """Of two blocks of queries, that are merged in several turns."""
    blocks = torch.cat([drawn_blocks(1, 150, share, 7) for share in shares])
    mask = BlockMask.from_dense(pairs_of(blocks, 128, 150 * 64 - 5))
    q = TARGET.tensor(1, 128, 1, 32)
    k, v = (TARGET.tensor(1, 150 * 64 - 5, 1, 32) for _ in "kv")
    check_dense(q, k, v, block_mask=mask)


def results(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def compare_with_cpu(*tensors: Tensor, gradients: bool = True, **options: Any) -> None:
    attend = results if gradients else lambda *args, **more: [flash_attn_func(*args, **more)]
    found = attend(*tensors, **options)
    with cpu_tensors_on("cpu"):
        expected = attend(*tensors, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=0.02 * float(y.abs().max()), rtol=0.02)


def test_long_columns() -> None:
    """Of more rows than a CTA counts at once, and more key blocks than one group: against the CPU
    kernels, which go through rows.
    """
    pairs = torch.zeros(260 * 64, 70 * 64, dtype=torch.bool)
    pairs[:, 65 * 64 + 3] = True
    pairs[258 * 64 + 1] = True
    pairs[::640, ::700] = True
    q = TARGET.tensor(1, 260 * 64, 1, 8)
    k, v = (TARGET.tensor(1, 70 * 64, 1, 8) for _ in "kv")
    options: dict[str, Any] = {"block_mask": BlockMask.from_dense(pairs), "deterministic": True}
    compare_with_cpu(q, k, v, **options)


@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k", "gradients"),
    [(128, 4096, False), (64, 64, True)],
    ids=["pieces_of_rows", "columns"],
)
def test_every_warp_counts_masks(seqlen_q: int, seqlen_k: int, gradients: bool) -> None:
    """Of every 33rd, one for a thread of each warp, all is visible, and nothing of others."""
    full = torch.zeros(8 * 33, dtype=torch.int64)
    full[::33] = 1
    rows, cols = seqlen_q // 64, seqlen_k // 64
    begin = (full.cumsum(0) - full) * rows * cols
    offsets = (begin[:, None] + full[:, None] * cols * torch.arange(rows + 1))[:, None]
    listed = torch.arange(cols).repeat(int(full.sum()) * rows).int()
    all_bits = torch.full((1, 64), -1)
    mask = BlockMask(seqlen_q, seqlen_k, offsets, listed, torch.zeros_like(listed), all_bits)
    q = TARGET.tensor(len(full), seqlen_q, 1, 8)
    k, v = (TARGET.tensor(1, seqlen_k, 1, 8).expand(len(full), -1, -1, -1) for _ in "kv")
    compare_with_cpu(q, k, v, gradients=gradients, block_mask=mask)


def test_deterministic_in_any_schedule() -> None:
    q = TARGET.tensor(2, 200, 4, 64)
    k, v = (TARGET.tensor(2, 333, 2, 64) for _ in "kv")
    options: dict[str, Any] = {"block_mask": drawn_mask(200, 333, 4), "deterministic": True}
    found = []
    for seed in (1, 2, 3):
        with emulator_options(f"ctas={seed},async=random,seed={seed},sums=ordered"):
            found.append(results(q, k, v, **options))
    for each in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(each, found[0], strict=True))


def counted(mask: BlockMask, head_dim: int = 64) -> float:
    """MMA instructions of a forward call."""
    module = backends.load(NAME).module
    q = TARGET.tensor(1, mask.seqlen_q, 1, head_dim)
    k, v = (TARGET.tensor(1, mask.seqlen_k, 1, head_dim) for _ in "kv")
    module.reset_counters()
    flash_attn_func(q, k, v, block_mask=mask)
    mma = module.counters()["mma"]
    assert isinstance(mma, float)
    return mma


def test_only_listed_blocks_are_multiplied() -> None:
    """A tile has two blocks of queries; where one of them does not list keys, its warps rest."""
    blocks = drawn_blocks(6, 9, 0.4, 3)
    mask = BlockMask.from_dense(pairs_of(blocks, 6 * 64, 9 * 64))
    assert 10 < int(blocks.sum()) < 40
    one = 64 * 64 * 64 * 2 / (16 * 8 * 16)  # of S and O, by m16n8k16
    assert counted(mask) == one * int(blocks.sum())


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("shares", [(0.9, 0.15), (0.15, 0.9), (0.7, 0.8)], ids=str)
def test_keys_that_both_lists_of_a_tile_have_are_read_once(
    shares: tuple[float, float], head_dim: int
) -> None:
    """However far the lists have got when the queue is filled again."""
    blocks = torch.cat([drawn_blocks(1, 150, share, 7) for share in shares])
    mask = BlockMask.from_dense(pairs_of(blocks, 128, 150 * 64))
    counted(mask, head_dim)
    read = backends.load(NAME).module.counters()["read.k.bytes"]
    assert read == int(blocks.any(0).sum()) * 64 * head_dim * 2


def test_keys_that_nobody_lists_are_not_read() -> None:
    """By the forward kernels. In the backward pass two blocks of keys may share a tile."""
    blocks = drawn_blocks(4, 6, 0.5, 5)
    blocks[:, 2] = False
    q = TARGET.tensor(1, 256, 2, 64)
    k, v = (TARGET.tensor(1, 6 * 64, 2, 64) for _ in "kv")
    mask = BlockMask.from_dense(pairs_of(blocks, 256, 6 * 64))
    expected = flash_attn_func(q, k, v, block_mask=mask)
    k[:, 128:192] = v[:, 128:192] = torch.nan
    assert torch.equal(flash_attn_func(q, k, v, block_mask=mask), expected)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_keys_that_are_not_listed_take_part_in_nothing(head_dim: int) -> None:
    """Even beside listed ones in a tile of 128 keys, where infinity times zero would show."""
    mask = BlockMask.from_dense(pairs_of(torch.eye(2, dtype=torch.bool), 128, 128))
    q, k, v = (TARGET.tensor(1, 128, 1, head_dim) for _ in "qkv")
    expected = results(q, k, v, block_mask=mask)
    for x in (k, v):
        x[:, 64:] = torch.inf
    for x, y in zip(results(q, k, v, block_mask=mask), expected, strict=True):
        assert torch.equal(x[:, :64], y[:, :64])

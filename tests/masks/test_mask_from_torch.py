"""Masks of FlexAttention; and pictures."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from support import TORCH
from test_mask_lists import assert_canonical
from torch import Tensor

from flash_attn2 import masks
from flash_attn2.masks import BlockMask

flex = pytest.importorskip("torch.nn.attention.flex_attention")

# Before 2.6 create_block_mask says that its blocks have 128 rows, whatever they have.
KEEPS_SIZES = TORCH >= (2, 6)
IDS = torch.arange(1000) // 130


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def documents(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (IDS[q] == IDS[k]) & (q >= k - 70 * b)


def by_head(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q - k).abs() <= 50 * (h + 1)


@pytest.mark.parametrize("mod", [causal, documents, by_head, flex.noop_mask])
@pytest.mark.parametrize("lengths", [(1, 1), (128, 128), (200, 330), (330, 200)], ids=str)
@pytest.mark.parametrize("size", [64, 128, (64, 192), (192, 64)] if KEEPS_SIZES else [128], ids=str)
def test_from_torch(mod: Any, lengths: tuple[int, int], size: Any) -> None:
    theirs = flex.create_block_mask(mod, 2, 3, *lengths, device="cpu", BLOCK_SIZE=size)
    mask = BlockMask.from_torch(theirs)
    seqlens = getattr(theirs, "seq_lengths", (mask.seqlen_q, mask.seqlen_k))
    assert (mask.seqlen_q, mask.seqlen_k) == tuple(seqlens)
    dense = mask.to_dense()[..., : lengths[0], : lengths[1]]
    expected = flex.create_mask(mod, 2, 3, *lengths, device="cpu")
    assert torch.equal(dense.expand_as(expected), expected)
    assert_canonical(mask)


def test_lists_that_were_made_by_hand() -> None:
    """Without full blocks; what is behind the counts does not count."""
    counts = torch.tensor([[[1, 2]]], dtype=torch.int32)
    indices = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    theirs = flex.BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=128)
    mask = BlockMask.from_torch(theirs)
    dense = torch.ones(256, 256, dtype=torch.bool)
    dense[:128, :128] = False
    assert torch.equal(mask.to_dense()[0, 0], dense)


def test_masks_that_are_refused() -> None:
    counts = torch.ones(1, 1, 1, dtype=torch.int32)
    theirs = flex.BlockMask.from_kv_blocks(counts, counts[..., None], BLOCK_SIZE=32)
    with pytest.raises(ValueError, match=r"multiples of 64, got \(32, 32\)"):
        BlockMask.from_torch(theirs)
    with pytest.raises(TypeError, match=r"flex_attention\.BlockMask, got Tensor"):
        BlockMask.from_torch(torch.ones(3, 3))


# Pictures


@pytest.fixture
def pyplot() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_pictures(pyplot: Any) -> None:
    pattern = masks.prefix(70) | masks.window(10, 10)
    mask = pattern.build(200, 300)
    ax = mask.plot()
    kinds = ax.images[0].get_array().tolist()
    seen = [[0] * 5 for _ in range(4)]
    for i, row in enumerate(mask.rows()):
        for col, full in zip(row.cols.tolist(), row.full.tolist(), strict=True):
            seen[i][col] = 2 if full else 1
    assert kinds == seen
    assert ax.get_title() == f"{mask.density:.2%} of pairs are visible"
    assert ax.get_xlim() == (0, 300)
    assert ax.get_ylim() == (200, 0)
    _, other = pyplot.subplots()
    assert mask.plot(other) is other


def test_pictures_of_a_head(pyplot: Any) -> None:
    mask = masks.random_blocks(1, seed=0, heads=2).build(640, heads=2)
    ax = mask.plot(head=1)
    columns = [row.index(2) for row in ax.images[0].get_array().tolist()]
    assert columns == [row.cols.item() for row in mask.rows(0, 1)]
    assert "head 1" in ax.get_title()
    with pytest.raises(IndexError, match="head must be from 0 to 1, got 2"):
        mask.plot(head=2)


def test_pictures_of_long_masks(pyplot: Any) -> None:
    mask = (masks.causal() | masks.prefix(1024)).build(64 * 3000)
    kinds = torch.tensor(mask.plot().images[0].get_array().tolist())
    assert kinds.shape == (1000, 1000)
    assert (kinds.tril(-1) == torch.full_like(kinds, 2).tril(-1)).all()
    assert (kinds.diagonal()[6:] == 1).all()
    assert (kinds[0, :6] == torch.tensor([2, 2, 2, 2, 2, 1])).all()


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'flash_attn2\[bench\]'"):
        masks.causal().build(3).plot()

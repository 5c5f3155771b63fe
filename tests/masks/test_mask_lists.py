"""BlockMask: its lists, their checks, and all that is done with masks apart from attention."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from flash_attn2.masks import BlockMask

NAMES = ("row_offsets", "cols", "tiles", "bits")
SHAPES = [(1, 1, 1, 1), (1, 1, 63, 64), (2, 3, 65, 200), (1, 2, 200, 65), (2, 1, 130, 63)]


def lists_of(mask: BlockMask) -> dict[str, Tensor]:
    return {name: getattr(mask, name) for name in NAMES}


def assert_canonical(mask: BlockMask) -> None:
    """Block by block, from the definition."""
    dense = mask.to_dense()
    tiles, numbers = [], []
    for batch in range(mask.batch):
        for head in range(mask.heads):
            rows = list(mask.rows(batch, head))
            assert len(rows) == -(-mask.seqlen_q // 64)
            for i, row in enumerate(rows):
                blocks = dense[batch, head, 64 * i : 64 * i + 64].split(64, -1)
                listed = [j for j, block in enumerate(blocks) if block.any()]
                assert row.cols.tolist() == listed
                assert row.full.tolist() == [bool(blocks[j].all()) for j in listed]
                tiles += [blocks[j] for j in listed if not blocks[j].all()]
                begin, end = mask.row_offsets[batch, head, i : i + 2].tolist()
                numbers += [t for t in mask.tiles[begin:end].tolist() if t]
    assert mask.row_offsets.flatten()[0] == 0
    assert mask.row_offsets.flatten()[-1] == mask.cols.numel()
    assert (mask.bits[0] == -1).all()
    assert len(set(mask.bits.unbind())) == len(set(map(tuple, mask.bits.tolist())))
    assert list(dict.fromkeys(numbers)) == list(range(1, mask.bits.shape[0]))
    for number, tile in zip(numbers, tiles, strict=True):
        assert torch.equal(mask.bits[number], words_of(tile))


def words_of(tile: Tensor) -> Tensor:
    """From Python's integers."""
    words = [sum(1 << j for j, x in enumerate(row) if x) for row in tile.tolist()]
    words += [0] * (64 - len(words))
    return torch.tensor([w - (1 << 64) if w >> 63 else w for w in words])


def blotted(shape: tuple[int, ...]) -> Tensor:
    """A random mask with empty, partial and full blocks."""
    mask = torch.rand(shape) < 0.5
    rows, cols = (torch.arange(n) // 64 for n in shape[-2:])
    kind = torch.randint(3, (*shape[:2], 8, 8))[:, :, rows][..., cols]
    return torch.where(kind == 1, mask, kind == 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("visible", [0, 0.001, 0.5, 1, None])
def test_dense_and_back(shape: tuple[int, ...], visible: float | None) -> None:
    dense = blotted(shape) if visible is None else torch.rand(shape) < visible
    mask = BlockMask.from_dense(dense)
    assert_canonical(mask)
    assert torch.equal(mask.to_dense(), dense)
    assert mask.density == pytest.approx(dense.double().mean().item())
    assert (mask.batch, mask.heads, mask.seqlen_q, mask.seqlen_k) == shape


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_no_pairs(lengths: tuple[int, int]) -> None:
    dense = torch.ones(lengths, dtype=torch.bool)
    mask = BlockMask.from_dense(dense)
    assert mask.cols.numel() == 0
    assert mask.density == 0
    assert mask.to_dense().shape == (1, 1, *lengths)
    assert BlockMask(*lengths, **lists_of(mask)) == mask


def test_strided_dense_masks() -> None:
    dense = torch.rand(2, 70, 3, 130) < 0.5
    mask = BlockMask.from_dense(dense.transpose(1, 2))
    assert torch.equal(mask.to_dense(), dense.transpose(1, 2))
    one = dense[:1, :, :1].transpose(1, 2).expand(2, 3, 70, 130)
    assert torch.equal(BlockMask.from_dense(one).to_dense(), one)


def test_equal_tiles_are_stored_once() -> None:
    causal = torch.ones(512, 512, dtype=torch.bool).tril()
    mask = BlockMask.from_dense(causal)
    assert mask.bits.shape[0] == 2
    assert mask.cols.numel() == 36
    assert mask.tiles.tolist().count(1) == 8


@pytest.mark.parametrize("name", ["seqlen_q", "bits", "other"])
def test_masks_cannot_be_changed(name: str) -> None:
    mask = BlockMask.from_dense(torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(AttributeError, match=name):
        setattr(mask, name, 1)
    with pytest.raises(AttributeError, match=name):
        delattr(mask, name)


# Lists that are equal in meaning


def loose(mask: BlockMask) -> BlockMask:
    """The same pairs: full blocks as partial ones, a tile for each entry, empty blocks listed, bits
    outside the lengths set."""
    rows, cols = (-(-n // 64) for n in (mask.seqlen_q, mask.seqlen_k))
    dense = torch.ones(mask.batch, mask.heads, 64 * rows, 64 * cols, dtype=torch.bool)
    dense[..., : mask.seqlen_q, : mask.seqlen_k] = mask.to_dense()
    blocks = dense.unflatten(-1, (cols, 64)).unflatten(-3, (rows, 64)).transpose(-3, -2)
    words = [words_of(block) for block in blocks.reshape(-1, 64, 64)]
    lists = mask.batch * mask.heads
    return BlockMask(
        mask.seqlen_q,
        mask.seqlen_k,
        (torch.arange(lists)[:, None] * rows * cols + torch.arange(rows + 1) * cols).view(
            mask.batch, mask.heads, -1
        ),
        torch.arange(cols, dtype=torch.int32).repeat(lists * rows),
        torch.arange(1, len(words) + 1, dtype=torch.int32),
        torch.stack([torch.full((64,), -1), *words]),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equality_is_of_what_is_visible(shape: tuple[int, ...]) -> None:
    dense = blotted(shape)
    mask = BlockMask.from_dense(dense)
    other = loose(mask)
    assert other == mask
    assert hash(other) == hash(mask)
    assert torch.equal(other.to_dense(), dense)
    assert other.density == mask.density
    canonical = BlockMask.unchecked(*shape[2:], other._canonical_lists())
    for ours, theirs in zip(lists_of(canonical).values(), lists_of(mask).values(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    dense[-1, -1, -1, -1] ^= True
    assert BlockMask.from_dense(dense) != mask
    assert BlockMask.from_dense(dense) != other


def test_masks_of_other_sizes_are_not_equal() -> None:
    mask = BlockMask.from_dense(torch.ones(3, 4, dtype=torch.bool))
    for shape in ((1, 1, 4, 3), (2, 1, 3, 4), (1, 2, 3, 4), (1, 1, 3, 5)):
        assert BlockMask.from_dense(torch.ones(shape, dtype=torch.bool)) != mask
    assert mask != "mask"


# Copies, pickles, pytrees


@pytest.fixture
def mask() -> BlockMask:
    return BlockMask.from_dense(blotted((2, 3, 65, 200)))


def test_copies(mask: BlockMask) -> None:
    assert copy.copy(mask) is mask
    deep = copy.deepcopy(mask)
    assert deep == mask
    assert deep.bits.data_ptr() != mask.bits.data_ptr()
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_saved_and_loaded(mask: BlockMask) -> None:
    file = io.BytesIO()
    torch.save({"mask": mask}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["mask"] == mask


def test_a_pickle_is_checked(mask: BlockMask) -> None:
    lists = lists_of(mask) | {"cols": mask.cols + 7}
    wrong = BlockMask.unchecked(65, 200, lists.values())
    with pytest.raises(ValueError, match="cols"):
        pickle.loads(pickle.dumps(wrong))


def test_devices(mask: BlockMask) -> None:
    assert mask.device == torch.device("cpu")
    assert mask.to("cpu") is mask
    assert mask.to(torch.device("cpu"), non_blocking=True) is mask
    elsewhere = mask.to("meta")
    assert elsewhere.device == torch.device("meta")
    assert elsewhere.cols.shape == mask.cols.shape
    assert (elsewhere.seqlen_q, elsewhere.seqlen_k) == (65, 200)
    assert "meta" in repr(elsewhere)


def test_a_pytree_node(mask: BlockMask) -> None:
    leaves, spec = pytree.tree_flatten({"mask": mask})
    assert [id(x) for x in leaves] == [id(x) for x in lists_of(mask).values()]
    assert pytree.tree_unflatten(leaves, spec)["mask"] == mask
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    moved = pytree.tree_map(lambda t: t.to("meta"), mask)
    assert moved.device == torch.device("meta")
    # Transformations put anything in the place of leaves.
    assert pytree.tree_map(lambda _: None, mask).cols is None
    assert "None" in repr(pytree.tree_map(lambda _: None, mask))
    paths, _ = pytree.tree_flatten_with_path([mask])
    assert [pytree.keystr(path) for path, _ in paths] == [f"[0].{name}" for name in NAMES]


def test_compiled_functions_take_masks(mask: BlockMask) -> None:
    def count(mask: BlockMask, x: Tensor) -> Tensor:
        return x + mask.cols.sum() + mask.seqlen_k

    compiled = torch.compile(count, fullgraph=True, backend="eager")
    x = torch.zeros(1)
    assert torch.equal(compiled(mask, x), count(mask, x))


def test_fake_masks(mask: BlockMask) -> None:
    with FakeTensorMode() as mode:
        fake = pytree.tree_map(mode.from_tensor, mask)
        again = BlockMask(65, 200, **lists_of(fake))
    assert again.batch == 2
    assert "density" not in repr(again)
    assert "density" in repr(mask)


# Bad input


def changed(mask: BlockMask, **lists: Any) -> BlockMask:
    return BlockMask(mask.seqlen_q, mask.seqlen_k, **(lists_of(mask) | lists))


@pytest.mark.parametrize("name", NAMES)
def test_types(mask: BlockMask, name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a torch\.Tensor, got list"):
        changed(mask, **{name: [1]})
    with pytest.raises(TypeError, match=rf"{name} must be torch\.int\d\d, got torch\.float32"):
        changed(mask, **{name: getattr(mask, name).float()})
    if name != "bits":
        with pytest.raises(ValueError, match=rf"{name} must be on the device of bits, cpu"):
            changed(mask, **{name: getattr(mask, name).to("meta")})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("row_offsets", lambda t: t[..., :-1]),
        ("row_offsets", lambda t: t[0]),
        ("row_offsets", lambda t: t[:0]),
        ("row_offsets", lambda t: t + 1),
        ("row_offsets", lambda t: t.flip(-1)),
        ("row_offsets", lambda t: t.clamp(max=int(t.max()) - 1)),
        ("row_offsets", lambda t: t.index_fill(1, torch.tensor([1]), int(t[0, 0, -1]))),
        ("cols", lambda t: t[None]),
        ("cols", lambda t: t[:-1]),
        ("cols", lambda t: t - 1),
        ("cols", lambda t: t + 1),
        ("cols", torch.zeros_like),
        ("cols", lambda t: t.flip(0)),
        ("tiles", lambda t: t[:-1]),
        ("tiles", lambda t: t - 2),
        ("tiles", lambda t: t + 1),
        ("bits", lambda t: t[:, :-1]),
        ("bits", lambda t: t[:0]),
        ("bits", lambda t: t[1:]),
        ("bits", lambda t: t[0]),
    ],
)
def test_contents(name: str, change: Any) -> None:
    dense = torch.rand(2, 2, 130, 200) < 0.5
    mask = BlockMask.from_dense(dense)
    with pytest.raises(ValueError, match=f"{name} must|must have the shape of {name}"):
        changed(mask, **{name: change(getattr(mask, name))})


@pytest.mark.parametrize("name", ["seqlen_q", "seqlen_k"])
@pytest.mark.parametrize("value", [-1, 2**29])
def test_lengths(mask: BlockMask, name: str, value: int) -> None:
    lengths = {"seqlen_q": 65, "seqlen_k": 200, name: value}
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 536870911, got {value}"):
        BlockMask(**lengths, **lists_of(mask))
    with pytest.raises(TypeError, match=name):
        BlockMask(**(lengths | {name: 1.5}), **lists_of(mask))


def test_lists_of_other_lengths(mask: BlockMask) -> None:
    with pytest.raises(ValueError, match=r"row_offsets must .* seqlen_q 129"):
        BlockMask(129, 200, **lists_of(mask))
    with pytest.raises(ValueError, match="cols must be from 0 to blocks of keys - 1 = 0, got"):
        BlockMask(65, 64, **lists_of(mask))


def test_dense_masks_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be a torch\.Tensor"):
        BlockMask.from_dense([[True]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"mask must be torch\.bool, got torch\.float32"):
        BlockMask.from_dense(torch.ones(2, 2))
    for shape in ((2,), (2, 2, 2), (0, 1, 2, 2), (1, 0, 2, 2)):
        with pytest.raises(ValueError, match="mask must"):
            BlockMask.from_dense(torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="meta"):
        BlockMask.from_dense(torch.ones(2, 2, dtype=torch.bool, device="meta"))


def test_rows_that_there_are_not(mask: BlockMask) -> None:
    with pytest.raises(IndexError, match="batch must be from 0 to 1, got 2"):
        mask.rows(2)
    with pytest.raises(IndexError, match="head must be from 0 to 2, got -1"):
        mask.rows(0, -1)

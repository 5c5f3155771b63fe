"""Every pattern against its plain dense formula; how patterns combine, print and compare."""

from __future__ import annotations

import operator
from typing import Any

import plain_masks as plain
import pytest
import torch
from plain_masks import LENGTHS
from test_mask_lists import assert_canonical
from torch import Tensor

from flash_attn2 import masks
from flash_attn2.masks import BlockMask, Pattern

over_lengths = pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)


def assert_shows(mask: BlockMask, dense: Tensor) -> None:
    assert torch.equal(mask.to_dense(), dense.expand(mask.batch, mask.heads, *dense.shape[-2:]))
    assert_canonical(mask)


@over_lengths
@pytest.mark.parametrize("left", [-1, 0, 1, 63, 64, 100])
@pytest.mark.parametrize("right", [-1, 0, 5, 64, 130])
def test_window(seqlen_q: int, seqlen_k: int, left: int, right: int) -> None:
    mask = masks.window(left, right).build(seqlen_q, seqlen_k)
    assert_shows(mask, plain.window(seqlen_q, seqlen_k, left, right))


@over_lengths
def test_causal(seqlen_q: int, seqlen_k: int) -> None:
    mask = masks.causal().build(seqlen_q, seqlen_k)
    assert_shows(mask, plain.window(seqlen_q, seqlen_k, -1, 0))


def test_windows_without_bounds() -> None:
    assert masks.window(None, 0) == masks.causal()
    assert masks.window(None, None) == masks.window(-1, -1)
    assert masks.window(10**20, 3).build(70) == masks.window(-1, 3).build(70)


@over_lengths
@pytest.mark.parametrize("n", [0, 1, 64, 70, 10**30])
def test_prefix(seqlen_q: int, seqlen_k: int, n: int) -> None:
    assert_shows(masks.prefix(n).build(seqlen_q, seqlen_k), plain.prefix(seqlen_q, seqlen_k, n))


@over_lengths
def test_prefix_of_each_sequence(seqlen_q: int, seqlen_k: int) -> None:
    lengths = [0, 3, 64, 500]
    dense = torch.stack([plain.prefix(seqlen_q, seqlen_k, n) for n in lengths])[:, None]
    for n in (lengths, torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int16)):
        mask = masks.prefix(n).build(seqlen_q, seqlen_k, batch=4, heads=2)
        assert (mask.batch, mask.heads) == (4, 1)
        assert_shows(mask, dense)


@over_lengths
@pytest.mark.parametrize("tokens", [0, 1, 64, 100, "some", "none", "all"])
def test_global_tokens(seqlen_q: int, seqlen_k: int, tokens: int | str) -> None:
    if isinstance(tokens, int):
        given: int | Tensor = tokens
        flags = torch.arange(seqlen_k) < tokens
    else:
        given = flags = torch.rand(seqlen_k) < {"some": 0.05, "none": 0, "all": 1}[tokens]
    mask = masks.global_tokens(given).build(seqlen_q, seqlen_k)
    assert_shows(mask, plain.global_tokens(seqlen_q, seqlen_k, flags))


def ids_of(kind: str, seqlen: int) -> Tensor:
    if kind == "one":
        return torch.full((seqlen,), 7)
    if kind == "interleaved":
        return torch.randint(-1, 3, (seqlen,))
    if kind == "large":
        return torch.randint(-(2**40), 2**40, (seqlen,)).sort().values
    return torch.randint(5, (seqlen,)).sort().values


@over_lengths
@pytest.mark.parametrize("kind", ["sorted", "one", "interleaved", "large"])
def test_documents(seqlen_q: int, seqlen_k: int, kind: str) -> None:
    ids = ids_of(kind, seqlen_k)
    mask = masks.documents(ids).build(seqlen_q, seqlen_k)
    assert_shows(mask, plain.documents(seqlen_q, seqlen_k, ids))


@over_lengths
def test_documents_of_each_sequence(seqlen_q: int, seqlen_k: int) -> None:
    kinds = ("sorted", "one", "interleaved")
    ids = torch.stack([ids_of(kind, seqlen_k) for kind in kinds])
    mask = masks.documents(ids.int()).build(seqlen_q, seqlen_k, batch=3)
    dense = torch.stack([plain.documents(seqlen_q, seqlen_k, x) for x in ids])
    assert_shows(mask, dense[:, None])


@over_lengths
@pytest.mark.parametrize("behind", [0, 10])
def test_documents_by_their_bounds(seqlen_q: int, seqlen_k: int, behind: int) -> None:
    end = max(seqlen_k - behind, 0)
    bounds = torch.tensor([0, end // 3, end // 3, end // 2, end])
    ids = torch.full((seqlen_k,), -1)
    for i in range(4):
        ids[bounds[i] : bounds[i + 1]] = i
    mask = masks.documents(cu_seqlens=bounds.int()).build(seqlen_q, seqlen_k)
    assert_shows(mask, plain.documents(seqlen_q, seqlen_k, ids))


def test_documents_do_not_keep_their_tensor() -> None:
    ids = torch.tensor([0, 0, 1])
    pattern = masks.documents(ids)
    ids.zero_()
    assert not pattern.build(3).to_dense().all()


@over_lengths
@pytest.mark.parametrize("block", [64, 128, (64, 192)], ids=str)
@pytest.mark.parametrize("own", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
def test_blocks(seqlen_q: int, seqlen_k: int, block: Any, own: tuple[int, int]) -> None:
    of_q, of_k = block if isinstance(block, tuple) else (block, block)
    table = torch.rand(*own, -(-seqlen_q // of_q), -(-seqlen_k // of_k)) < 0.5
    mask = masks.blocks(table, block).build(seqlen_q, seqlen_k, batch=2, heads=3)
    assert (mask.batch, mask.heads) == own
    assert_shows(mask, plain.blocks(seqlen_q, seqlen_k, table, of_q, of_k))
    assert mask.bits.shape[0] == 1


@over_lengths
@pytest.mark.parametrize("own", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
def test_dense(seqlen_q: int, seqlen_k: int, own: tuple[int, int]) -> None:
    dense = torch.rand(*own, seqlen_q, seqlen_k) < 0.5
    mask = masks.dense(dense).build(seqlen_q, seqlen_k, batch=2, heads=3)
    assert (mask.batch, mask.heads) == own
    assert_shows(mask, dense)
    assert mask == BlockMask.from_dense(dense)


def test_dense_masks_that_broadcast() -> None:
    keys = torch.rand(130) < 0.5
    assert_shows(masks.dense(keys).build(70, 130), keys.expand(70, 130))
    queries = torch.rand(2, 1, 70, 1) < 0.5
    mask = masks.dense(queries).build(70, 130, batch=2)
    assert_shows(mask, queries.expand(2, 1, 70, 130))
    turned = torch.rand(130, 70) < 0.5
    assert_shows(masks.dense(turned.t()).build(70, 130), turned.t())


@over_lengths
def test_function(seqlen_q: int, seqlen_k: int) -> None:
    table = torch.rand(2, 3, seqlen_q, seqlen_k) < 0.5
    pattern = masks.function(lambda b, h, q, k: table[b, h, q, k])
    mask = pattern.build(seqlen_q, seqlen_k, batch=2, heads=3)
    assert_shows(mask, table)
    pattern = masks.function(lambda b, h, q, k: k <= q)  # does not use all
    q, k = plain.indices(seqlen_q, seqlen_k)
    assert_shows(pattern.build(seqlen_q, seqlen_k), k <= q)
    assert pattern.build(seqlen_q, seqlen_k, batch=2).batch == 2


def test_functions_of_nothing() -> None:
    pattern = masks.function(lambda b, h, q, k: b.new_ones((), dtype=torch.bool))
    assert_shows(pattern.build(65, 130), torch.ones(65, 130, dtype=torch.bool))


@pytest.mark.parametrize("lengths", [(0, 0), (0, 70), (70, 0)], ids=str)
def test_no_queries_or_keys(lengths: tuple[int, int]) -> None:
    leaves = [
        masks.causal(),
        masks.prefix(3),
        masks.global_tokens(3),
        masks.random_blocks(3, seed=0),
        masks.documents(cu_seqlens=torch.zeros(1, dtype=torch.int32)),
        masks.documents(torch.zeros(lengths[1], dtype=torch.int32)),
        masks.function(lambda b, h, q, k: q == k),
        masks.dense(torch.ones(lengths, dtype=torch.bool)),
    ]
    for leaf in leaves:
        for pattern in (leaf, ~leaf, leaf & leaves[0], leaf | leaves[1]):
            mask = pattern.build(*lengths)
            assert mask.to_dense().shape == (1, 1, *lengths)
            assert mask.cols.numel() == 0


# Random blocks


def chosen(mask: BlockMask, head: int = 0) -> list[list[int]]:
    return [row.cols.tolist() for row in mask.rows(0, head)]


GOLDEN = [[2, 3, 11], [2, 6, 8], [4, 5, 12], [5, 11, 13], [5, 9, 10]]
GOLDEN_OF_HEADS = [
    [[2, 3, 6, 7], [2, 3, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7], [0, 1, 4, 5]],
    [[0, 1, 10, 11], [0, 1, 10, 11], [4, 5, 14, 15], [4, 5, 14, 15], [0, 1, 2, 3]],
]


def test_random_blocks_stay_the_same() -> None:
    """Not even one release may choose others."""
    mask = masks.random_blocks(3, seed=7).build(320, 1000)
    assert chosen(mask) == GOLDEN
    mask = masks.random_blocks(2, seed=2**64 - 1, heads=2, block=128).build(300, 1000, heads=2)
    assert [chosen(mask, head) for head in range(2)] == GOLDEN_OF_HEADS


@pytest.mark.parametrize("per_row", [0, 1, 3, 16, 100])
@pytest.mark.parametrize("block", [64, 128, 1024])
def test_random_blocks(per_row: int, block: int) -> None:
    mask = masks.random_blocks(per_row, block=block, seed=1).build(1000, 1000)
    num_cols = -(-1000 // block)
    coarse = [{col * 64 // block for col in cols} for cols in chosen(mask)]
    assert all(len(cols) == min(per_row, num_cols) for cols in coarse)
    table = torch.zeros(num_cols, num_cols, dtype=torch.bool)
    for i, cols in enumerate(coarse):
        table[i * 64 // block, list(cols)] = True
    assert_shows(mask, plain.blocks(1000, 1000, table, block, block))
    assert mask.bits.shape[0] == 1


def test_random_blocks_are_random() -> None:
    """Every key block is about equally likely, and seeds and heads choose apart."""
    many = masks.random_blocks(3, seed=0, heads=2).build(64 * 4000, 64 * 10, heads=2)
    counts = torch.bincount(many.cols, minlength=10).double()
    expected = many.cols.numel() / 10
    assert ((counts - expected) / expected**0.5).abs().max() < 4
    assert chosen(many) != chosen(many, 1)
    other = masks.random_blocks(3, seed=1).build(64 * 4000, 64 * 10)
    assert chosen(many) != chosen(other)
    assert len({tuple(cols) for cols in chosen(other)}) == 120  # every subset


def test_recipes() -> None:
    pattern = masks.bigbird(global_tokens=70, window=100, random_blocks=2, seed=3, heads=2)
    parts = (
        masks.global_tokens(70),
        masks.window(100, 100),
        masks.random_blocks(2, seed=3, heads=2),
    )
    dense = [part.build(1000, heads=2).to_dense() for part in parts]
    assert_shows(pattern.build(1000, heads=2), dense[0] | dense[1] | dense[2])
    flags = torch.arange(300) == 200
    mask = masks.longformer(window=30, global_tokens=flags).build(300)
    assert_shows(mask, plain.window(300, 300, 30, 30) | plain.global_tokens(300, 300, flags))


def test_long_masks_have_few_different_tiles() -> None:
    mask = masks.bigbird(window=256).build(65536)
    assert 14_000 < mask.cols.numel() < 14_500
    assert mask.bits.shape[0] == 3
    ids = torch.arange(65536) // 700
    mask = (masks.documents(ids) & masks.causal()).build(65536)
    assert mask.bits.shape[0] < 2 * 94 + 2


def test_tiles_of_the_same_hash() -> None:
    """Their first two words are made for the function in csrc/masks/tile_set.cpp."""

    def mixed(word: int) -> int:
        state = word * 0x9E3779B97F4A7C15 % 2**64
        return state ^ state >> 32

    words = ((1, 2), (3, mixed(1) ^ mixed(3) ^ 2))
    dense = torch.zeros(64, 128, dtype=torch.bool)
    for tile, pair in enumerate(words):
        for row, word in enumerate(pair):
            for bit in range(64):
                dense[row, 64 * tile + bit] = bool(word >> bit & 1)
    mask = masks.dense(dense).build(64, 128)
    assert_shows(mask, dense)
    assert mask.bits.shape[0] == 3


# The algebra


LEAVES = {
    "causal()": masks.causal(),
    "window(3, -1)": masks.window(3, None),
    "prefix(5)": masks.prefix(5),
    "prefix([5, 3])": masks.prefix([5, 3]),
    "global_tokens(4)": masks.global_tokens(4),
    "global_tokens(bool (9,))": masks.global_tokens(torch.ones(9, dtype=torch.bool)),
    "random_blocks(2, seed=1)": masks.random_blocks(2, seed=1),
    "random_blocks(2, block=128, seed=1, heads=3)": masks.random_blocks(
        2, block=128, seed=1, heads=3
    ),
    "documents(2 in 4 keys)": masks.documents(torch.tensor([0, 0, 1, 1])),
    "blocks(bool (1, 1, 2, 3), 64)": masks.blocks(torch.ones(2, 3, dtype=torch.bool)),
    "dense(bool (1, 1, 2, 3))": masks.dense(torch.ones(2, 3, dtype=torch.bool)),
    "function(isinstance)": masks.function(isinstance),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("text", LEAVES)
def test_what_leaves_print(text: str) -> None:
    assert repr(LEAVES[text]) == text


def test_what_expressions_print() -> None:
    a, b, c = masks.causal(), masks.prefix(1), masks.prefix(2)
    assert repr(a & b & c) == "causal() & prefix(1) & prefix(2)"
    assert repr(a & (b & c)) == repr(a & b & c)
    assert repr((a | b) & ~c) == "(causal() | prefix(1)) & ~prefix(2)"
    assert repr(~(a | b)) == "~(causal() | prefix(1))"
    assert repr(~~a) == "causal()"


def test_equality() -> None:
    def expression() -> Pattern:
        return ~masks.documents(torch.tensor([1, 1, 2])) & masks.causal() | masks.prefix(3)

    assert expression() == expression()
    assert hash(expression()) == hash(expression())
    assert expression().build(3) == expression().build(3)
    leaves = list(LEAVES.values())
    assert [[a == b for b in leaves] for a in leaves] == torch.eye(len(leaves)).bool().tolist()
    assert masks.causal() != "causal()"
    assert masks.causal() & masks.prefix(3) != masks.causal() | masks.prefix(3)
    assert len({*leaves, *leaves}) == len(leaves)


def test_patterns_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        masks.causal().left = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        (masks.causal() & masks.prefix(1)).operands = ()  # type: ignore[attr-defined]


def test_only_patterns_combine() -> None:
    other = torch.ones(3, 3, dtype=torch.bool)
    for combine in (
        lambda: masks.causal() & other,
        lambda: masks.causal() | other,
        lambda: masks.causal() & None,
        lambda: True | masks.causal(),
    ):
        with pytest.raises(TypeError, match="combines patterns, got"):
            combine()
    with pytest.raises(TypeError, match="no truth value"):
        bool(masks.causal())


def test_many_operands_and_deep_nesting() -> None:
    pattern = masks.prefix(1)
    for n in range(1000):
        pattern = pattern | masks.prefix(n)
    assert_shows(pattern.build(70, 1100), plain.prefix(70, 1100, 999))
    for _ in range(99):
        pattern = ~(pattern & masks.causal())
    pattern = pattern & masks.causal()
    with pytest.raises(ValueError, match="nested 200 deep"):
        operator.invert(pattern)
    assert pattern.build(70).to_dense().shape == (1, 1, 70, 70)

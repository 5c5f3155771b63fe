"""Random expressions of patterns: a mask shows what the boolean expression of its parts does."""

from __future__ import annotations

from typing import NamedTuple

import plain_masks as plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mask_lists import assert_canonical
from torch import Tensor

from flash_attn2 import masks
from flash_attn2.masks import Pattern

BATCH, HEADS = 2, 3


class Part(NamedTuple):
    """A pattern, and what it shows: bool (BATCH, HEADS, seqlen_q, seqlen_k)."""

    pattern: Pattern
    dense: Tensor


def leaf(draw: st.DrawFn, seqlen_q: int, seqlen_k: int) -> Part:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def random(*shape: int, share: float = 0.5) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    lengths = (seqlen_q, seqlen_k)
    own = (draw(st.sampled_from((1, BATCH))), draw(st.sampled_from((1, HEADS))))
    kind = draw(st.sampled_from(KINDS))
    if kind == "window":
        left, right = draw(st.integers(-1, 150)), draw(st.integers(-1, 150))
        return Part(masks.window(left, right), plain.window(*lengths, left, right))
    if kind == "prefix":
        n = draw(st.lists(st.integers(0, 200), min_size=own[0], max_size=own[0]))
        dense = torch.stack([plain.prefix(*lengths, x) for x in n])[:, None]
        return Part(masks.prefix(n), dense)
    if kind == "global_tokens":
        flags = random(seqlen_k, share=0.02)
        return Part(masks.global_tokens(flags), plain.global_tokens(*lengths, flags))
    if kind == "documents":
        ids = torch.randint(-1, 4, (own[0], seqlen_k), generator=generator)
        if draw(st.booleans()):
            ids = ids.sort(-1).values
        dense = torch.stack([plain.documents(*lengths, x) for x in ids])[:, None]
        return Part(masks.documents(ids), dense)
    if kind == "random_blocks":
        pattern = masks.random_blocks(draw(st.integers(0, 3)), seed=1, heads=own[1])
        return Part(pattern, pattern.build(*lengths, heads=HEADS).to_dense())
    if kind == "blocks":
        table = random(*own, *(-(-n // 64) for n in lengths))
        return Part(masks.blocks(table), plain.blocks(*lengths, table, 64, 64))
    dense = random(*own, *lengths)
    if kind == "dense":
        return Part(masks.dense(dense), dense)
    every = dense.expand(BATCH, HEADS, *lengths)
    return Part(masks.function(lambda b, h, q, k: every[b, h, q, k]), every)


KINDS = (
    "window",
    "prefix",
    "global_tokens",
    "documents",
    "random_blocks",
    "blocks",
    "dense",
    "function",
)


@st.composite
def expressions(draw: st.DrawFn) -> Part:
    lengths = draw(st.tuples(st.integers(1, 260), st.integers(1, 260)))
    parts = [leaf(draw, *lengths) for _ in range(draw(st.integers(1, 5)))]
    while len(parts) > 1 or draw(st.integers(0, 2)) == 2:
        part = parts.pop(0)
        operator = draw(st.sampled_from("&|~")) if parts else "~"
        if operator == "~":
            parts.append(Part(~part.pattern, ~part.dense))
            continue
        other = parts.pop(0)
        if operator == "&":
            parts.append(Part(part.pattern & other.pattern, part.dense & other.dense))
        else:
            parts.append(Part(part.pattern | other.pattern, part.dense | other.dense))
    return parts[0]


@settings(max_examples=150)
@given(expressions())
def test_a_mask_shows_what_its_expression_says(part: Part) -> None:
    seqlen_q, seqlen_k = part.dense.shape[-2:]
    mask = part.pattern.build(seqlen_q, seqlen_k, batch=BATCH, heads=HEADS)
    assert torch.equal(
        mask.to_dense().expand(BATCH, HEADS, -1, -1),
        part.dense.expand(BATCH, HEADS, seqlen_q, seqlen_k),
    )
    assert_canonical(mask)


# Functions are asked only where it matters


def asked(pattern_of: object, seqlen: int) -> set[tuple[int, int]]:
    """Blocks for which a function is called."""
    blocks: set[tuple[int, int]] = set()

    def record(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        for row, col in zip(q[:, 0, 0] // 64, k[:, 0, 0] // 64, strict=True):
            assert (int(row), int(col)) not in blocks
            blocks.add((int(row), int(col)))
        return (q * 3 + k) % 5 < 3

    pattern_of(masks.function(record)).build(seqlen)  # type: ignore[operator]
    return blocks


def listed(pattern: Pattern, seqlen: int) -> set[tuple[int, int]]:
    rows = pattern.build(seqlen).rows()
    return {(i, col) for i, row in enumerate(rows) for col in row.cols.tolist()}


def test_functions_are_asked_in_blocks_that_are_left_open() -> None:
    window, prefix, causal = masks.window(100, 20), masks.prefix(64), masks.causal()
    assert asked(lambda f: f & window, 1000) == listed(window, 1000)
    assert asked(lambda f: window & ~f, 1000) == listed(window, 1000)
    without_prefix = listed(window & ~prefix, 1000)
    assert asked(lambda f: window & f | prefix, 1000) == without_prefix
    assert asked(lambda f: (f | prefix) & window, 1000) == without_prefix
    assert asked(lambda f: f & masks.prefix(0), 1000) == set()
    assert asked(lambda f: f | ~masks.prefix(0), 1000) == set()
    documents = masks.documents(torch.arange(1000) // 70)
    assert asked(lambda f: causal & (documents & f), 1000) == listed(causal & documents, 1000)
    # Nor where only their pairs leave nothing open.
    assert asked(lambda f: f & documents & ~documents, 1000) == set()
    assert asked(lambda f: f | documents | ~documents, 1000) == set()


def test_a_row_of_more_blocks_than_are_asked_at_once() -> None:
    seqlen = 64 * 5000
    pattern = masks.function(lambda b, h, q, k: (q + k) % 7 == 0)
    mask = (pattern & ~masks.prefix(64 * 100)).build(3, seqlen)
    assert mask.cols.tolist() == list(range(100, 5000))
    assert mask.bits.shape[0] == 8
    q, k = plain.indices(3, seqlen)
    assert mask.density == pytest.approx((((q + k) % 7 == 0) & (k >= 6400)).double().mean())


def test_several_functions() -> None:
    a = masks.function(lambda b, h, q, k: (q + k) % 3 == 0)
    b = masks.function(lambda b, h, q, k: (q + h) % 5 < 3)
    c = masks.function(lambda b, h, q, k: k % 2 == b)
    pattern = (a | b & masks.window(300, 0)) & ~(c & masks.prefix(200))
    batch, head, q, k = torch.meshgrid(*map(torch.arange, (2, 3, 400, 400)), indexing="ij")
    dense = ((q + k) % 3 == 0) | ((q + head) % 5 < 3) & (k <= q) & (k >= q - 300)
    dense &= ~((k % 2 == batch) & (k < 200))
    assert torch.equal(pattern.build(400, batch=2, heads=3).to_dense(), dense)

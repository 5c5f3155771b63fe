"""Counted pairs are those of the mask that would be built."""

from __future__ import annotations

import pytest
import torch

from flash_attn2 import masks
from flash_attn2.masks.build import count_pairs

IDS = torch.tensor([0] * 70 + [-1] * 9 + [1] * 100 + [0] * 21)
DENSE = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(1)) < 0.3
PATTERNS = {
    "causal": masks.causal(),
    "window": masks.window(100, 5),
    "all": masks.window(None, None),
    "documents": masks.documents(IDS) & masks.causal(),
    "bigbird": masks.bigbird(window=3),
    "not": ~masks.prefix([3, 150]) | masks.causal(),
    "dense": masks.dense(DENSE),
    "function": masks.function(lambda b, h, q, k: (q + k) % 3 == 0) & masks.causal(),
    "nothing": masks.causal() & ~masks.causal(),
}


CASES = [(name, 200) for name in PATTERNS]
CASES += [(name, 192) for name in PATTERNS if name not in ("documents", "dense")]


@pytest.mark.parametrize(("name", "seqlen"), CASES)
def test_pairs(name: str, seqlen: int) -> None:
    pattern = PATTERNS[name]
    batch, heads = pattern.batch, pattern.heads
    counted = count_pairs(pattern, seqlen, batch=batch, heads=heads)
    mask = pattern.build(seqlen, batch=batch, heads=heads).to_dense()
    expected = [int(block.sum()) for block in mask.split(64, 2)]
    assert counted.tolist() == expected


def test_other_lengths() -> None:
    counted = count_pairs(masks.causal(), 70, 200)
    assert counted.tolist() == [sum(range(131, 195)), sum(range(195, 201))]
    assert count_pairs(masks.causal(), 0).shape == (0,)


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads must be 3, as the pattern has it, got 1"):
        count_pairs(PATTERNS["dense"], 200, batch=2)
    with pytest.raises(ValueError, match="seqlen_q must be from 0"):
        count_pairs(masks.causal(), -1)

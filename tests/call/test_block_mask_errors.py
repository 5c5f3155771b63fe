"""What is said of a wrong `block_mask`, before any memory is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import cumulative, lengths, mask_arguments
from torch.nn.attention import flex_attention

import flash_attn2
from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from flash_attn2.masks import BlockMask
from flash_attn2.nn import Attention

SEQLEN_Q, SEQLEN_K = 100, 130
Q, K = torch.randn(2, SEQLEN_Q, 4, 8), torch.randn(2, SEQLEN_K, 2, 8)
QKV = torch.randn(2, SEQLEN_Q, 3, 4, 8)


def mask_of(*size: int) -> BlockMask:
    return BlockMask.from_dense(torch.rand(size) < 0.5)


MASK = mask_of(1, 1, SEQLEN_Q, SEQLEN_K)
Attend = Callable[..., Any]
ATTEND: dict[str, Attend] = {
    "dense": lambda **options: flash_attn_func(Q, K, K, **options),
    "kvpacked": lambda **options: flash_attn_kvpacked_func(Q, torch.stack([K, K], 2), **options),
    "probs": lambda **options: attention_probs(Q, K, **options),
}


@pytest.mark.parametrize("attend", ATTEND.values(), ids=ATTEND)
@pytest.mark.parametrize(
    ("block_mask", "error", "text"),
    [
        (
            True,
            TypeError,
            "be a flash_attn2.masks.BlockMask, got bool: build one with flash_attn2.masks",
        ),
        ([[True]], TypeError, "got list: "),
        (MASK.to_dense(), TypeError, "got a tensor of torch.bool: use masks.BlockMask.from_dense"),
        (MASK.cols, TypeError, "got a tensor of torch.int32: build one"),
        (
            flex_attention.create_block_mask(
                lambda b, h, q, k: q >= k, None, None, SEQLEN_Q, SEQLEN_K, "cpu"
            ),
            TypeError,
            r"got torch.*BlockMask: use masks.BlockMask.from_torch",
        ),
        (mask_of(99, SEQLEN_K), ValueError, "lengths of q and k, 100 and 130, got .*seqlen_q=99"),
        (mask_of(SEQLEN_Q, 131), ValueError, "lengths of q and k, 100 and 130, got .*seqlen_k=131"),
        (mask_of(SEQLEN_K, SEQLEN_Q), ValueError, "lengths of q and k"),
        (mask_of(3, 1, SEQLEN_Q, SEQLEN_K), ValueError, "batch 1 or that of q, 2, got 3"),
        (
            mask_of(1, 3, SEQLEN_Q, SEQLEN_K),
            ValueError,
            "1 head, num_heads_kv, 2, or num_heads, 4, got 3",
        ),
        (MASK.to("meta"), ValueError, r"device of q, cpu, got meta: use block_mask.to\(q.device\)"),
    ],
)
def test_wrong_masks(attend: Attend, block_mask: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^block_mask must.*{text}"):
        attend(block_mask=block_mask)


def test_patterns_have_to_be_built() -> None:
    class Pattern:
        def build(self) -> None: ...

    with pytest.raises(TypeError, match=r"got a pattern: use block_mask.build\(seqlen_q"):
        flash_attn_func(Q, K, K, block_mask=Pattern())  # type: ignore[arg-type]


def test_qkvpacked() -> None:
    with pytest.raises(ValueError, match=r"lengths of q and k, 100 and 100, got .*seqlen_k=130"):
        flash_attn_qkvpacked_func(QKV, block_mask=MASK)


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window_size": (3, -1)}, {"window_size": (0, 0)}], ids=str
)
@pytest.mark.parametrize("attend", ATTEND.values(), ids=ATTEND)
def test_other_masks(attend: Attend, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"block_mask must come without causal.*masks.causal\(\) "):
        attend(block_mask=MASK, **options)


@pytest.mark.parametrize("name", ["dense", "kvpacked"])
def test_seqused_q(name: str) -> None:
    with pytest.raises(NotImplementedError, match="seqused_q must be None with block_mask"):
        ATTEND[name](block_mask=MASK, seqused_q=lengths(3, 5))


CU = cumulative(5, 5)
ROWS, ROWS_KV, ROWS_QKV = (torch.randn(10, *heads, 8) for heads in ((2,), (2, 2), (3, 2)))
CACHE = torch.randn(2, 16, 2, 8)
WITHOUT: dict[str, tuple[Any, ...]] = {
    "flash_attn_varlen_func": (ROWS, ROWS, ROWS, CU, CU, 5, 5),
    "flash_attn_varlen_kvpacked_func": (ROWS, ROWS_KV, CU, CU, 5, 5),
    "flash_attn_varlen_qkvpacked_func": (ROWS_QKV, CU, 5),
    "flash_attn_with_kvcache": (torch.randn(2, 1, 2, 8), CACHE, CACHE),
    "varlen_attention_probs": (ROWS, ROWS, CU, CU, 5, 5),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_functions_without_one(name: str) -> None:
    text = f"{name} has no argument 'block_mask': flash_attn_func.*one sequence.*masks.documents"
    with pytest.raises(TypeError, match=text):
        getattr(flash_attn2, name)(*WITHOUT[name], block_mask=MASK)


def test_over_pages() -> None:
    table = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"'block_mask'.*masks\.documents"):
        flash_attn2.flash_attn_varlen_func(
            *(ROWS, CACHE, CACHE, CU, CU, 5, 5),
            block_table=table,
            block_mask=MASK,  # type: ignore[call-arg]
        )


def test_module() -> None:
    x = torch.randn(2, SEQLEN_Q, 16)
    attention = Attention(16, 2)
    with pytest.raises(ValueError, match="lengths of q and k, 100 and 100"):
        attention(x, block_mask=MASK)
    with pytest.raises(ValueError, match=r"block_mask must come without cu_seqlens.*documents"):
        attention(x.flatten(0, 1), cu_seqlens=cumulative(100, 100), max_seqlen=100, block_mask=MASK)
    with pytest.raises(ValueError, match="block_mask must come without causal"):
        Attention(16, 2, causal=True)(x, block_mask=mask_of(SEQLEN_Q, SEQLEN_Q))
    with pytest.raises(TypeError, match="Attention has no argument 'block_mask'"):
        Attention(16, 2, block_mask=MASK)  # type: ignore[call-arg]


# The ops, which take the tensors of a mask.

GIVEN = mask_arguments(MASK)
OFFSETS, COLS, TILES, BITS = GIVEN.values()
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    *((name, None, ValueError, f"{name} must be given with") for name in GIVEN),
    *((name, x.double(), TypeError, f"{name} must be torch.int") for name, x in GIVEN.items()),
    ("block_mask_offsets", OFFSETS.int(), TypeError, "must be torch.int64, got torch.int32"),
    ("block_mask_cols", COLS.long(), TypeError, "must be torch.int32, got torch.int64"),
    ("block_mask_tiles", TILES.long(), TypeError, "must be torch.int32, got torch.int64"),
    ("block_mask_bits", BITS.int(), TypeError, "must be torch.int64, got torch.int32"),
    *((name, x[None], ValueError, f"{name} must be .*, got shape") for name, x in GIVEN.items()),
    *((name, x.to("meta"), ValueError, "device of q, cpu, got meta") for name, x in GIVEN.items()),
    ("block_mask_offsets", OFFSETS[..., :2], ValueError, "100 rows of q, which are 2 blocks, .* 1"),
    ("block_mask_offsets", OFFSETS[..., :0], ValueError, "which are 2 blocks"),
    ("block_mask_offsets", OFFSETS.expand(3, 1, 3), ValueError, "batch 1 or that of q, 2, got 3"),
    ("block_mask_offsets", OFFSETS[:0], ValueError, "batch 1 or that of q, 2, got 0"),
    ("block_mask_offsets", OFFSETS.expand(1, 3, 3), ValueError, "num_heads, 4, got 3"),
    ("block_mask_offsets", OFFSETS[:, :0], ValueError, "num_heads, 4, got 0"),
    ("block_mask_tiles", TILES[:-1], ValueError, "as many elements as block_mask_cols, 6, got 5"),
    ("block_mask_bits", BITS[:0], ValueError, "at least one tile"),
    ("block_mask_bits", BITS[:, :63], ValueError, r"\(tiles, 64\)"),
]
ids = [f"{name}-{text}" for name, _, _, text in WRONG]


@pytest.mark.parametrize(("name", "value", "error", "text"), WRONG, ids=ids)
def test_wrong_tensors(name: str, value: Any, error: type[Exception], text: str) -> None:
    given = GIVEN | {name: value}
    with pytest.raises(error, match=text):
        torch.ops.flash_attn2.forward(Q, K, K, **given)
    lse = torch.zeros(2, 4, SEQLEN_Q)
    with pytest.raises(error, match=text):
        torch.ops.flash_attn2.backward(Q, None, Q, K, K, Q, lse, None, **given)


def test_freed_memory() -> None:
    cols = COLS.clone()
    cols.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="block_mask_cols must be in memory"):
        torch.ops.flash_attn2.forward(Q, K, K, **GIVEN | {"block_mask_cols": cols})


def test_ops_refuse_what_functions_do() -> None:
    for options in ({"window_right": 0}, {"window_left": 3}):
        with pytest.raises(ValueError, match="block_mask must come without causal"):
            torch.ops.flash_attn2.forward(Q, K, K, **options, **GIVEN)
    with pytest.raises(NotImplementedError, match="seqused_q must be None"):
        torch.ops.flash_attn2.forward(Q, K, K, seqused_q=lengths(1, 2), **GIVEN)

"""Rotary position embedding: by tables, at offsets of sequences, of packed queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import cumulative
from torch import Tensor

from flash_attn2 import apply_rotary_emb, flash_attn_with_kvcache
from flash_attn2.nn import RotaryEmbedding
from flash_attn2.reference import rotated

TABLE = 9 * torch.rand(40, 6)
COS, SIN = TABLE.cos(), TABLE.sin()
SEQLENS = (3, 0, 5)


def expected(x: Tensor, offset: Any = 0, interleaved: bool = False) -> Tensor:
    positions = torch.arange(x.shape[1]) + torch.as_tensor(offset).view(-1, 1)
    positions = positions.expand(x.shape[:2])
    return rotated(x, COS.double(), SIN.double(), positions, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offset", [0, 7, torch.tensor([3, 30]), torch.tensor([0, 9]).int()])
def test_by_tables(interleaved: bool, offset: Any) -> None:
    x = torch.randn(2, 8, 3, 16, dtype=torch.float64)
    turned = apply_rotary_emb(x, COS.double(), SIN.double(), interleaved, seqlen_offsets=offset)
    torch.testing.assert_close(turned, expected(x, offset, interleaved), rtol=0, atol=1e-12)
    packed = torch.cat([x[0, :3], x[1, :5], x[0, 7:]])
    offsets = offset if isinstance(offset, int) else offset[[0, 1, 1]]
    turned = apply_rotary_emb(
        packed, COS, SIN, interleaved, False, offsets, cumulative(*SEQLENS), 5
    )
    first, second = expected(x, offset, interleaved)
    torch.testing.assert_close(turned[:8], torch.cat([first[:3], second[:5]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_tables(dtype: torch.dtype) -> None:
    """They turn 16-bit rows as float32 would have it."""
    x = torch.randn(2, 8, 3, 16).to(dtype)
    turned = apply_rotary_emb(x, COS, SIN)
    assert turned.dtype == dtype
    assert torch.equal(turned, apply_rotary_emb(x.float(), COS, SIN).to(dtype))
    assert not torch.equal(turned, apply_rotary_emb(x, COS.to(dtype), SIN.to(dtype)))


def test_in_place_and_gradients() -> None:
    x = torch.randn(2, 8, 3, 16)
    turned = apply_rotary_emb(x, COS, SIN)
    view = x[:, :, 1:]
    assert apply_rotary_emb(view, COS, SIN, inplace=True) is view
    assert torch.equal(x[:, :, 1:], turned[:, :, 1:])
    double = torch.randn(1, 3, 2, 12, dtype=torch.float64, requires_grad=True)
    tables = [t[:3].double().requires_grad_() for t in (COS, SIN)]
    assert torch.autograd.gradcheck(apply_rotary_emb, (double, *tables))


def test_compiled() -> None:
    torch._dynamo.reset()
    x, offsets = torch.randn(2, 8, 3, 16), torch.tensor([1, 2])
    call = torch.compile(apply_rotary_emb, fullgraph=True, backend="aot_eager")
    actual = call(x, COS, SIN, seqlen_offsets=offsets)
    assert torch.equal(actual, apply_rotary_emb(x, COS, SIN, seqlen_offsets=offsets))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(8, 3, 16)}, ValueError, r"x must be \(batch, seqlen, .* \(8, 3, 16\)"),
        ({"x": torch.ones(1, 8, 3, 16).int()}, TypeError, "x must be float16, .* torch.int32"),
        ({"cos": COS[0]}, ValueError, r"cos must be \(positions, rotary_dim / 2\) .* \(6,\)"),
        ({"cos": torch.rand(40, 9)}, ValueError, r"head_dim, 16, got shape \(40, 9\)"),
        ({"sin": SIN[:3]}, ValueError, r"sin must have the shape of cos, \(40, 6\), got \(3, 6\)"),
        ({"sin": None}, TypeError, "sin must be a torch.Tensor, got NoneType"),
        ({"sin": SIN.int()}, TypeError, "sin must be float16, .* got torch.int32"),
        ({"cos": COS.to("meta")}, ValueError, "cos must be on the device of x, cpu, got meta"),
        ({"interleaved": "no"}, TypeError, "interleaved must be a bool"),
        ({"inplace": None}, TypeError, "inplace must be a bool"),
        ({"seqlen_offsets": -1}, ValueError, "seqlen_offsets must not be negative, got -1"),
        (
            {"seqlen_offsets": 33},
            ValueError,
            "cos must have .* 41 positions, got 40",
        ),
        ({"seqlen_offsets": torch.tensor([33])}, ValueError, "each of 41 positions, got 40"),
        ({"seqlen_offsets": torch.tensor([-1])}, ValueError, "seqlen_offsets must not be neg"),
        ({"seqlen_offsets": torch.zeros(2).int()}, ValueError, r"have shape \(1,\), got \(2,\)"),
        ({"seqlen_offsets": torch.zeros(1)}, TypeError, "seqlen_offsets must be int32 or int64"),
        ({"seqlen_offset": 3}, TypeError, "no argument .seqlen_offset.: use seqlen_offsets"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.randn(1, 8, 3, 16), "cos": COS, "sin": SIN}
    with pytest.raises(error, match=message):
        apply_rotary_emb(**arguments | change)


# The module.


@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_of_the_module(interleaved: bool) -> None:
    rotary = RotaryEmbedding(12, 500.0, interleaved, scaling_factor=2.0)
    x = torch.randn(2, 8, 3, 16)
    cos, sin = rotary.tables(20)
    assert cos.shape == sin.shape == (20, 6)
    assert cos.dtype == torch.float32
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    turned = apply_rotary_emb(x, cos, sin, rotary.interleaved, seqlen_offsets=12)
    assert torch.equal(turned, rotary(x, offset=12))
    low, _ = rotary.tables(20, torch.bfloat16, "cpu")
    assert torch.equal(low, cos.bfloat16())
    assert rotary.tables(0)[0].shape == (0, 6)
    assert rotary.tables(4, device="meta")[0].is_meta


def test_a_prompt_by_the_module_and_by_the_cache() -> None:
    """With its `interleaved`, both turn keys the same way."""
    rotary = RotaryEmbedding(16)
    x = torch.randn(1, 6, 2, 16)
    written = torch.zeros(1, 8, 2, 16)
    cos, sin = rotary.tables(8)
    flash_attn_with_kvcache(
        *(x, written, torch.zeros_like(written), x, x, cos, sin, 0),
        causal=True,
        rotary_interleaved=rotary.interleaved,
    )
    assert torch.equal(written[:, :6], rotary(x))


def test_offsets_of_sequences() -> None:
    rotary = RotaryEmbedding(12)
    x = torch.randn(3, 4, 2, 16)
    offsets = torch.tensor([5, 0, 1000])
    one_by_one = [rotary(x[b : b + 1], offset=int(offset)) for b, offset in enumerate(offsets)]
    torch.testing.assert_close(rotary(x, offset=offsets), torch.cat(one_by_one))
    packed = rotary(x.flatten(0, 1), offset=offsets.int(), cu_seqlens=cumulative(4, 4, 4))
    torch.testing.assert_close(packed, torch.cat(one_by_one).flatten(0, 1))
    with pytest.raises(ValueError, match=r"offset must have shape \(3,\), got \(2,\)"):
        rotary(x, offset=offsets[:2])


def test_packed_queries_keys_and_values() -> None:
    rotary = RotaryEmbedding(12, interleaved=True)
    qkv = torch.randn(2, 4, 3, 5, 16)
    q, k, v = qkv.unbind(2)
    turned = torch.stack([rotary(q, offset=3), rotary(k, offset=3), v], 2)
    assert torch.equal(rotary(qkv, offset=3), turned)
    flat = rotary(qkv.flatten(0, 1), offset=3, cu_seqlens=cumulative(4, 4))
    assert torch.equal(flat, turned.flatten(0, 1))
    with pytest.raises(ValueError, match=r"x must be .* got shape \(2, 4, 2, 5, 16\)"):
        rotary(qkv[:, :, :2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "seqlen must be from 0 to"),
        ((1.5,), TypeError, "seqlen must be an int"),
        ((3, torch.int32), TypeError, "dtype must be float16, .* got torch.int32"),
    ],
)
def test_errors_of_tables(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RotaryEmbedding(8).tables(*arguments)

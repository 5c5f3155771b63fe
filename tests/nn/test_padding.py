"""pad_input and unpad_input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, lengths, targets

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, pad_input, unpad_input
from flash_attn2.padding import index_first_axis

MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float()], ids=["int", "bool", "float"])
@pytest.mark.parametrize("trailing", [(7,), (2, 4), ()], ids=str)
def test_round_trip(mask: torch.Tensor, trailing: tuple[int, ...]) -> None:
    x = torch.randn(3, 5, *trailing)
    packed, indices, cu_seqlens, max_seqlen, used = unpad_input(x, mask)
    assert torch.equal(packed, x[MASK.bool()])
    assert indices.tolist() == [0, 1, 2, 11, 13, 14]
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist() == [0, 3, 3, 6]
    assert max_seqlen == 3
    assert used.tolist() == [3, 0, 3]
    padded = pad_input(packed, indices, 3, 5)
    assert torch.equal(padded, x * MASK[(..., *(None,) * len(trailing))])


def test_unused_rows_are_kept_but_not_counted() -> None:
    x = torch.randn(3, 5, 7)
    unused = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    packed, indices, cu_seqlens, max_seqlen, used = unpad_input(x, MASK, unused)
    assert torch.equal(packed, x[(MASK + unused).bool()])
    assert indices.tolist() == [0, 1, 2, 3, 10, 11, 13, 14]
    assert cu_seqlens.tolist() == [0, 4, 4, 8]
    assert max_seqlen == 4
    assert used.tolist() == [3, 0, 3]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_nothing(shape: tuple[int, int]) -> None:
    packed, indices, cu_seqlens, max_seqlen, _ = unpad_input(
        torch.randn(*shape, 7), torch.ones(shape)
    )
    assert packed.shape == (0, 7)
    assert cu_seqlens.tolist() == [0] * (shape[0] + 1)
    assert max_seqlen == 0
    assert pad_input(packed, indices, *shape).shape == (*shape, 7)


def test_gradients() -> None:
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    _, indices, *_ = unpad_input(x, MASK)
    assert torch.autograd.gradcheck(lambda x: unpad_input(x, MASK)[0], (x,))
    packed = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pad_input(x, indices, 3, 5), (packed,))


@targets(ONE_DTYPE)
def test_padded_batch_through_packed_attention(target: Target) -> None:
    """Right padding: the packed sequences give what each gives on its own."""
    seqlens = (70, 33, 0)
    q, k, v = (target.tensor(3, 70, 2, 32) for _ in range(3))
    mask = torch.arange(70, device=target.device) < torch.tensor(seqlens)[:, None].to(target.device)
    packed_q, indices, cu_seqlens, max_seqlen, _ = unpad_input(q, mask)
    packed_k, packed_v = unpad_input(k, mask)[0], unpad_input(v, mask)[0]
    out = flash_attn_varlen_func(
        packed_q, packed_k, packed_v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, causal=True
    )
    padded = pad_input(out, indices, 3, 70)
    for i, n in enumerate(seqlens):
        alone = flash_attn_func(*(x[i : i + 1, :n] for x in (q, k, v)), causal=True)
        assert torch.equal(padded[i, :n], alone[0])
        assert not padded[i, n:].any()


def test_indices_may_be_int32() -> None:
    x = torch.randn(3, 2, 4)
    indices = lengths(5, 0, 3)
    assert torch.equal(pad_input(x, indices, 2, 3), pad_input(x, indices.long(), 2, 3))
    assert torch.equal(index_first_axis(x, lengths(2, 2)), x[[2, 2]])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            torch.tensor([[0.0, -1e9]]),
            ValueError,
            r"attention_mask must be .* mask == 0",
        ),
        (torch.zeros(1, 2), ValueError, r"attention_mask must be .* only zeros .* mask == 0"),
        (torch.ones(1, 2, device="meta"), ValueError, "attention_mask must be on the device of"),
        (torch.tensor([[0, -1]]), ValueError, r"attention_mask must not be negative, got -1"),
        (torch.ones(2, 1), ValueError, r"attention_mask must have shape .* \(1, 2\), got \(2, 1\)"),
        ([[1, 0]], TypeError, r"attention_mask must be a torch.Tensor, got list"),
    ],
)
def test_masks_that_mean_something_else(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unpad_input(torch.randn(1, 2, 4), mask)
    packed, *_ = unpad_input(torch.randn(1, 2, 4), torch.tensor([[1.0, 0.0]]))
    assert packed.shape == (1, 4)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"indices": lengths(0, 6)}, ValueError, r"indices must be from 0 to .* = 5, got 6"),
        ({"indices": lengths(0, -1)}, ValueError, r"indices must be from 0 to .* got -1"),
        ({"indices": lengths(0)}, ValueError, r"hidden_states must have a row for each of 1 "),
        ({"indices": torch.tensor([0.0, 1.0])}, TypeError, r"indices must be int32 or int64"),
        ({"batch": 2.0}, TypeError, r"batch must be an int, got float 2.0"),
        ({"seqlen": -3}, ValueError, r"seqlen must not be negative, got -3"),
        ({"batch": 2**63}, ValueError, "batch must be at most 2147483647, got"),
        ({"batch": torch.tensor(2, device="meta")}, ValueError, "batch must have values"),
        ({"indices": lengths(0, 1).to("meta")}, ValueError, "indices must be on the device of"),
    ],
)
def test_pad_errors(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "hidden_states": torch.randn(2, 4),
        "indices": lengths(0, 4),
        "batch": 2,
        "seqlen": 3,
    }
    assert pad_input(**arguments).shape == (2, 3, 4)
    with pytest.raises(error, match=message):
        pad_input(**arguments | bad)


@pytest.mark.parametrize("index", [-1, 3])
def test_rows_that_are_not_there(index: int) -> None:
    with pytest.raises(ValueError, match=f"indices must be from 0 to .* = 2, got {index}"):
        index_first_axis(torch.randn(3, 4), lengths(0, index))


def test_indices_are_not_read_while_compiling() -> None:
    x, indices = torch.randn(2, 4), lengths(0, 4)
    compiled = torch.compile(pad_input, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, indices, 2, 3), pad_input(x, indices, 2, 3))

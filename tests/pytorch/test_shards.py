"""A call that is a shard of a larger one: the same entries are dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, cumulative, drawn_rng_state, targets
from torch import Tensor

BATCH, HEADS, HEADS_KV, ROWS = 3, 4, 2, 40
DROPOUT_P = 0.4


def forward(tensors: list[Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.flash_attn2.forward(*tensors, dropout_p=DROPOUT_P, **options)  # type: ignore[no-any-return]


def backward(tensors: list[Tensor], results: Any, grad_out: Tensor, **options: Any) -> Any:
    out, lse, rng_state = results
    return torch.ops.flash_attn2.backward(
        *(grad_out, None, *tensors, out, lse, rng_state), dropout_p=DROPOUT_P, **options
    )


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dim", [0, 2])
def test_parts_are_those_of_the_whole(target: Target, dim: int) -> None:
    """Of the batch, and of the heads."""
    q, grad_out = (target.tensor(BATCH, ROWS, HEADS, 16) for _ in range(2))
    k, v = (target.tensor(BATCH, ROWS, HEADS_KV, 16) for _ in range(2))
    state = drawn_rng_state(target.device)
    whole = forward([q, k, v])
    assert torch.equal(whole[2], state)
    grads = backward([q, k, v], whole, grad_out)
    part = slice(1, 3) if dim == 0 else slice(2, 4)
    part_kv = part if dim == 0 else slice(1, 2)
    place = {"batch_start": 1} if dim == 0 else {"head_start": 2, "num_heads_total": HEADS}

    def of(x: Tensor, part: slice) -> Tensor:
        return (x[part] if dim == 0 else x[:, :, part]).contiguous()

    tensors = [of(q, part), of(k, part_kv), of(v, part_kv)]
    results = forward(tensors, given_rng_state=state, **place)
    assert torch.equal(results[0], of(whole[0], part))
    assert torch.equal(results[2], state)
    assert results[2].data_ptr() != state.data_ptr()
    elsewhere = forward(tensors, given_rng_state=state)
    assert not torch.equal(elsewhere[0], results[0])
    found = backward(tensors, results, of(grad_out, part), **place)
    for grad, expected, cut in zip(found, grads, (part, part_kv, part_kv), strict=False):
        assert torch.equal(grad, of(expected, cut))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_of_biases(target: Target, dim: int) -> None:
    """An entry for each score: by batch, and by heads."""
    q, k, v, grad_out = (target.tensor(BATCH, ROWS, HEADS, 16) for _ in range(4))
    bias = target.tensor(BATCH, HEADS, ROWS, ROWS)
    part = slice(1, 3)
    place = {"batch_start": 1} if dim == 0 else {"head_start": 1, "num_heads_total": HEADS}
    state = drawn_rng_state(target.device)

    def gradient(tensors: list[Tensor], grad_out: Tensor, bias: Tensor, **place: Any) -> Tensor:
        results = forward(tensors, given_rng_state=state, bias=bias, **place)
        return torch.ops.flash_attn2.bias_backward(  # type: ignore[no-any-return]
            *(grad_out, None, *tensors, *results),
            dropout_p=DROPOUT_P,
            bias=bias,
            of_bias=True,
            **place,
        )[0]

    def of(x: Tensor) -> Tensor:
        return (x[part] if dim == 0 else x[:, :, part]).contiguous()

    whole = gradient([q, k, v], grad_out, bias)
    cut = (bias[part] if dim == 0 else bias[:, part]).contiguous()
    found = gradient([of(q), of(k), of(v)], of(grad_out), cut, **place)
    assert torch.equal(found, whole[part] if dim == 0 else whole[:, part])
    assert not torch.equal(gradient([of(q), of(k), of(v)], of(grad_out), cut), found)


def test_packed_heads() -> None:
    q, k = torch.randn(ROWS, HEADS, 16), torch.randn(ROWS, HEADS_KV, 16)
    cu = cumulative(10, 0, 30)
    state = drawn_rng_state("cpu")

    def attend(q: Tensor, k: Tensor, **place: Any) -> Tensor:
        lengths = cu, cu, None, 30, 30
        return torch.ops.flash_attn2.varlen_forward(  # type: ignore[no-any-return]
            q, k, k, *lengths, dropout_p=DROPOUT_P, given_rng_state=state, **place
        )[0]

    part = attend(q[:, 2:], k[:, 1:], head_start=2, num_heads_total=HEADS)
    assert torch.equal(part, attend(q, k)[:, 2:])


@pytest.mark.parametrize(
    ("kind", "message", "wrong"),
    [
        (ValueError, "batch_start must be from 0", {"batch_start": -1}),
        (ValueError, "batch_start must be from 0", {"batch_start": 2**31 - 2}),
        (ValueError, "head_start and num_heads_total", {"head_start": 1}),
        (ValueError, "head_start and num_heads_total", {"head_start": -1, "num_heads_total": 8}),
        (ValueError, "do not lie within 7", {"head_start": 4, "num_heads_total": 7}),
        (ValueError, "do not lie within", {"num_heads_total": 2**31}),
        (ValueError, r"rng_state must have shape \(2,\)", {"given_rng_state": torch.zeros(3)}),
        (TypeError, "rng_state must be torch.int64", {"given_rng_state": torch.zeros(2)}),
        (
            ValueError,
            "rng_state must be on the device of q",
            {"given_rng_state": torch.zeros(2, dtype=torch.int64, device="meta")},
        ),
    ],
)
def test_errors(kind: type[Exception], message: str, wrong: dict[str, Any]) -> None:
    x = torch.zeros(BATCH, ROWS, HEADS, 16)
    with pytest.raises(kind, match=message):
        forward([x, x, x], **wrong)
    rows, cu = x[0], cumulative(10, 30)
    with pytest.raises(kind, match=message):
        torch.ops.flash_attn2.varlen_forward(
            *(rows, rows, rows, cu, cu, None, 30, 30), dropout_p=DROPOUT_P, **wrong
        )

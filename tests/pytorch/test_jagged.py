"""Nested tensors of layout torch.jagged, beside their sequences one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ONE_DTYPE, TORCH, Target, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.masks import BlockMask

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

LENGTHS = (5, 0, 17)
LENGTHS_K = (9, 3, 20)


def nested(lengths: tuple[int, ...], heads: int, like: Any = None, dtype: Any = None) -> Any:
    """A leaf; with the offsets of `like`, if there is one."""
    rows = torch.randn(sum(lengths), heads, 8, dtype=dtype)
    offsets = torch.tensor([0, *lengths]).cumsum(0) if like is None else like.offsets()
    return torch.nested.nested_tensor_from_jagged(rows, offsets).detach().requires_grad_()


def problem(dtype: torch.dtype = torch.float32) -> list[Any]:
    q, k = nested(LENGTHS, 4, dtype=dtype), nested(LENGTHS_K, 2, dtype=dtype)
    return [q, k, nested(LENGTHS_K, 2, k, dtype)]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True, "softmax_scale": 0.3},
    "window": {"window_size": (3, 1), "softcap": 2.0, "deterministic": True},
    "heads": {"alibi_slopes": torch.rand(4), "sink": torch.randn(4)},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_each_sequence_is_as_alone(case: str) -> None:
    options = OPTIONS[case]
    q, k, v = problem()
    out, lse = flash_attn_func(q, k, v, return_lse=True, **options)  # type: ignore[misc]
    assert out.shape == q.shape
    assert lse.shape[1] == 4
    grad_out, grad_lse = torch.randn(sum(LENGTHS), 4, 8), torch.randn(4, sum(LENGTHS))
    loss = (out.values() * grad_out).sum() + (lse.values() * grad_lse).sum()
    grads = torch.autograd.grad(loss, (q, k, v))
    begin = 0
    for i, length in enumerate(LENGTHS):
        leaves = [x.detach().unbind()[i][None].requires_grad_() for x in (q, k, v)]
        rows = slice(begin, begin := begin + length)
        alone: Any = flash_attn_func(*leaves, return_lse=True, **options)
        expected = torch.autograd.grad(
            alone, leaves, (grad_out[None, rows], grad_lse[None, :, rows])
        )
        torch.testing.assert_close(out.unbind()[i], alone[0][0])
        torch.testing.assert_close(lse.unbind()[i], alone[1][0])
        for grad, given in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad.unbind()[i], given[0], rtol=1e-4, atol=1e-5)


@targets(ONE_DTYPE)
def test_on_each_backend(target: Target) -> None:
    q, k, v = problem(target.dtype)
    out: Any = flash_attn_func(q, k, v, causal=True)
    out.values().sum().backward()
    leaves = [x.detach().unbind()[2][None].requires_grad_() for x in (q, k, v)]
    alone: Any = flash_attn_func(*leaves, causal=True)
    alone.sum().backward()
    torch.testing.assert_close(out.unbind()[2], alone[0], rtol=2e-2, atol=2e-2)
    for x, leaf in zip((q, k, v), leaves, strict=True):
        torch.testing.assert_close(x.grad.unbind()[2], leaf.grad[0], rtol=2e-2, atol=2e-2)


def test_results_go_on_as_nested_tensors() -> None:
    """With the ragged size of q, so that they can be added."""
    q = nested(LENGTHS, 4)
    out: Any = flash_attn_func(q, q, q)
    layer = torch.nn.Linear(32, 32)
    (layer(out.flatten(-2)) + q.flatten(-2)).values().sum().backward()
    assert q.grad.shape == q.shape
    assert layer.weight.grad.abs().sum() > 0


def test_rows_between_sequences() -> None:
    """Sequences with holes after them, as narrow leaves them."""
    dense = torch.randn(3, 10, 2, 8)
    starts, lengths = torch.tensor([1, 0, 4]), torch.tensor([6, 0, 5])
    x = torch.nested.narrow(dense, 1, starts, lengths, layout=torch.jagged)
    slopes = torch.rand(3, 2)
    out: Any = flash_attn_func(x, x, x, causal=True, alibi_slopes=slopes)
    assert out.shape == x.shape
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        part = dense[i : i + 1, start : start + length]
        alone: Any = flash_attn_func(part, part, part, causal=True, alibi_slopes=slopes[i])
        torch.testing.assert_close(out.unbind()[i], alone[0])
    whole = nested((3, 4, 2), 2)
    out = flash_attn_func(whole, x, x, causal=True)
    assert out.shape == whole.shape
    if TORCH < (2, 6):  # which does not transpose such tensors, as an lse needs
        return
    assert flash_attn_func(x, x, x, 0.5, return_attn_probs=True)[2].shape[:2] == (3, 2)


def test_dropout() -> None:
    q, k, v = problem()
    torch.manual_seed(0)
    first: Any = flash_attn_func(q, k, v, 0.5)
    torch.manual_seed(0)
    out, _, probs = flash_attn_func(q, k, v, 0.5, return_attn_probs=True)  # type: ignore[misc]
    assert torch.equal(first.values(), out.values())
    assert probs.shape == (3, 4, 17, 20)
    assert (probs < 0).any()


@pytest.mark.skipif(TORCH < (2, 6), reason="compiling nested tensors was young")
def test_compiled() -> None:
    q, k, v = problem()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(q * 2, k, v, causal=True)  # type: ignore[return-value]

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    out, expected = compiled(q, k, v), attend(q, k, v)
    torch.testing.assert_close(out.values(), expected.values())
    grads, given = (torch.autograd.grad(x.values().sin().sum(), (q, k, v)) for x in (out, expected))
    for a, b in zip(grads, given, strict=True):
        torch.testing.assert_close(a.values(), b.values())


def heads_first(x: Any) -> Any:
    return x.transpose(1, 2)


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (
            TypeError,
            "k a nested tensor of layout torch.jagged as q is, got a dense",
            lambda q, k, v: (q, torch.zeros(3, 9, 2, 8), v),
        ),
        (TypeError, "v a nested tensor .*NoneType", lambda q, k, v: (q, k, None)),
        (TypeError, "k must be a dense tensor", lambda q, k, v: (torch.zeros(3, 9, 2, 8), k, v)),
        (ValueError, "q must be nested as", lambda q, k, v: (heads_first(q), k, v)),
        (ValueError, "as many sequences as q, 3, got 2", lambda q, k, v: (q, nested((4, 4), 2), v)),
        (ValueError, "v must have the lengths", lambda q, k, v: (q, k, nested((3, 9, 20), 2))),
        (ValueError, "v must have the lengths", lambda q, k, v: (q, k, nested(LENGTHS, 2))),
        (ValueError, "num_heads of q", lambda q, k, v: (nested(LENGTHS, 3), k, v)),
    ],
)
def test_errors(kind: type[Exception], message: str, change: Any) -> None:
    with pytest.raises(kind, match=message):
        flash_attn_func(*change(*problem()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", torch.zeros(1)),
        ("relative_bias", torch.zeros(1, 1)),
        ("seqused_q", torch.zeros(3, dtype=torch.int32)),
        ("block_mask", BlockMask.from_dense(torch.ones(5, 5, dtype=torch.bool))),
    ],
)
def test_options_of_dense_tensors(name: str, value: Any) -> None:
    q = nested(LENGTHS, 4)
    with pytest.raises(ValueError, match=f"{name} must be None with nested tensors"):
        flash_attn_func(q, q, q, **{name: value})

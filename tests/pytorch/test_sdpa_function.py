"""sdpa.scaled_dot_product_attention beside torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import TORCH, Target, drawn_rng_state, targets
from torch import Tensor
from torch.nn import functional

from flash_attn2.integrations.sdpa import scaled_dot_product_attention
from flash_attn2.reference import attention_reference

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def shapes(*lead: int, q: int = 9, k: int = 13, width: int = 8, width_v: int = 8) -> Shapes:
    return (*lead, q, width), (*lead, k, width), (*lead, k, width_v)


def check(given: Shapes, **options: Any) -> None:
    """out and gradients, in float64, where PyTorch computes by plain formulas."""
    leaves = [torch.randn(x, dtype=torch.float64, requires_grad=True) for x in given]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        leaves.append(mask.double().requires_grad_())
        options["attn_mask"] = leaves[-1]
    results = []
    for function in (scaled_dot_product_attention, functional.scaled_dot_product_attention):
        out = function(*leaves[:3], **options)
        torch.manual_seed(0)
        grad_out = torch.randn(out.shape, dtype=out.dtype)
        results.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "lead", [(), (3,), (2, 3), (2, 2, 3), (0, 3)], ids=lambda x: f"{len(x)}_{x and x[0]}"
)
def test_any_number_of_dimensions(lead: tuple[int, ...]) -> None:
    check(shapes(*lead))
    if 0 not in lead:
        check(shapes(*lead, q=13), is_causal=True, scale=0.7)


@pytest.mark.parametrize("lengths", [(5, 13), (13, 5), (70, 150), (150, 70), (1, 4), (4, 1)])
def test_causal_is_aligned_to_the_top_left(lengths: tuple[int, int]) -> None:
    check(shapes(2, 3, q=lengths[0], k=lengths[1]), is_causal=True)


@pytest.mark.parametrize("widths", [(8, 24), (24, 8), (8, 1)])
def test_values_of_another_width(widths: tuple[int, int]) -> None:
    check(shapes(2, 3, width=widths[0], width_v=widths[1]))
    check(shapes(2, 3, width=widths[0], width_v=widths[1]), is_causal=True, scale=0.2)


@pytest.mark.skipif(TORCH < (2, 5), reason="this PyTorch has no enable_gqa")
@pytest.mark.parametrize("heads", [(6, 2), (6, 1), (6, 6)])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_grouped_heads(heads: tuple[int, int], lead: tuple[int, ...]) -> None:
    q, k, v = (*lead, heads[0], 9, 8), (*lead, heads[1], 9, 8), (*lead, heads[1], 9, 8)
    check((q, k, v), enable_gqa=True, is_causal=True)


@pytest.mark.parametrize(
    "given",
    [
        ((2, 6, 9, 8), (2, 1, 13, 8), (2, 1, 13, 8)),
        ((2, 1, 9, 8), (2, 6, 13, 8), (2, 6, 13, 8)),
        ((2, 6, 9, 8), (2, 6, 13, 8), (2, 1, 13, 8)),
        ((2, 6, 9, 8), (1, 6, 13, 8), (2, 6, 13, 8)),
        ((1, 6, 9, 8), (2, 6, 13, 8), (2, 6, 13, 8)),
        ((3, 1, 6, 9, 8), (3, 2, 6, 13, 8), (1, 2, 6, 13, 8)),
    ],
    ids=str,
)
def test_dimensions_broadcast(given: Shapes) -> None:
    check(given)


MASKS = [(9, 13), (1, 13), (9, 1), (3, 9, 13), (2, 1, 9, 13), (2, 3, 9, 13), (2, 1, 1, 13)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks(shape: tuple[int, ...]) -> None:
    if shape[-1] > 1 or TORCH >= (2, 5):  # before, queries that see nothing gave NaN
        check(shapes(2, 3), attn_mask=torch.rand(shape) > 0.4)
    check(shapes(2, 3), attn_mask=torch.randn(shape))


def test_masks_of_other_dimensions() -> None:
    check(shapes(3), attn_mask=torch.rand(3, 9, 13) > 0.4)
    check(shapes(), attn_mask=torch.randn(9, 13))
    for shape in ((2, 2, 3, 9, 13), (2, 1, 1, 9, 13), (1, 2, 3, 9, 13), (9, 13), (2, 3, 9, 13)):
        check(shapes(2, 2, 3), attn_mask=torch.rand(shape) > 0.4)
        check(shapes(2, 2, 3), attn_mask=torch.randn(shape))


def test_rows_that_see_nothing() -> None:
    q, k, v = (torch.randn(x) for x in shapes(2, 3))
    mask = torch.rand(9, 13) > 0.4
    mask[4] = False
    for hidden in (mask, torch.where(mask, 0.0, -torch.inf)):
        out = scaled_dot_product_attention(q, k, v, hidden)
        assert (out[:, :, 4] == 0).all()
        assert out.isfinite().all()


def test_without_values() -> None:
    """Masks of compiled calls and fake tensors are added to scores."""
    q, k, v = (torch.randn(x) for x in shapes(2, 3))
    mask = torch.rand(9, 13) > 0.4
    compiled = torch.compile(scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    expected = functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(compiled(q, k, v, mask), expected, rtol=1e-4, atol=1e-5)
    out = scaled_dot_product_attention(*(x.to("meta") for x in (q, k, v, mask)))
    assert out.shape == expected.shape


@targets([Target("cpu", torch.bfloat16), Target("sm80-emulated", torch.bfloat16)])
def test_masks_on_each_backend(target: Target) -> None:
    q, k, v = (target.tensor(1, 2, 70, 16) for _ in range(3))
    mask = torch.rand(70, 70, device=target.device) > 0.4
    for given in (mask, target.tensor(70, 70)):
        actual = scaled_dot_product_attention(q, k, v, given)
        tensors = (x.float() for x in (q, k, v))
        added = given if given.dtype == torch.bool else given.float()
        expected = functional.scaled_dot_product_attention(*tensors, added)
        torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)


def test_dropout() -> None:
    q, k, v = (torch.randn(x) for x in shapes(2, 3))
    state = drawn_rng_state("cpu")
    actual = scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    rows: list[Tensor] = [x.transpose(1, 2) for x in (q, k, v)]
    expected = attention_reference(*rows, dropout_p=0.4, rng_state=state)[0].transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


X = torch.zeros(2, 3, 5, 8)


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (TypeError, "key must be a torch.Tensor", {"key": None}),
        (TypeError, "is_causal must be a bool", {"is_causal": 2}),
        (TypeError, "enable_gqa must be a bool", {"enable_gqa": "no"}),
        (TypeError, "scale must be a number or None, got str", {"scale": "1"}),
        (ValueError, "scale must be 0 or from", {"scale": -1.0}),
        (ValueError, "dropout_p must be from 0", {"dropout_p": 1.5}),
        (
            ValueError,
            "attn_mask must be None with is_causal",
            {"attn_mask": torch.zeros(5, 5), "is_causal": True},
        ),
        (
            ValueError,
            r"attn_mask must broadcast .*got shape \(4, 5\)",
            {"attn_mask": torch.zeros(4, 5)},
        ),
        (ValueError, "attn_mask must broadcast", {"attn_mask": torch.zeros(2, 1, 3, 5, 5)}),
        (TypeError, "attn_mask must be torch.bool", {"attn_mask": torch.zeros(5, 5).int()}),
        (TypeError, "attn_mask must be a torch.Tensor", {"attn_mask": True}),
        (ValueError, "key must be .*as many dimensions", {"key": X[0]}),
        (ValueError, "query must be .*at least 2", {"query": X[0, 0, 0]}),
        (ValueError, "leading dimensions", {"key": torch.zeros(5, 3, 5, 8)}),
        (ValueError, "without enable_gqa", {"query": torch.zeros(2, 6, 5, 8)}),
        (
            ValueError,
            "divisor of",
            {"query": torch.zeros(2, 4, 5, 8), "enable_gqa": True},
        ),
        (ValueError, "value must have the heads of key, 3, got 2", {"value": X[:, :2]}),
        (ValueError, "v must have|rows", {"value": X[:, :, :4]}),
        (
            ValueError,
            "head_dim_v, of v, must be from 1 to 512",
            {"value": torch.zeros(2, 3, 5, 513)},
        ),
    ],
)
def test_errors(kind: type[Exception], message: str, change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"query": X, "key": X, "value": X} | change
    with pytest.raises(kind, match=message):
        scaled_dot_product_attention(**options)

"""`merge_attention`: results over parts of the keys against one over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, assert_lse, assert_within_rule, cumulative, targets
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, merge_attention
from flash_attn2.reference import attention_reference

CUTS = [(0, 70), (0, 64, 65, 200), (0, 0, 200)]


def over_parts(q: Tensor, k: Tensor, v: Tensor, cuts: tuple[int, ...], **options: Any) -> Any:
    """Of causal attention: the last part holds the diagonal, the others are seen whole."""
    ends = (*cuts[1:], k.shape[1])
    parts = []
    for begin, end in zip(cuts, ends, strict=True):
        last = end == k.shape[1]
        window = (-1, end - k.shape[1] if last else -1)
        part = k[:, begin:end], v[:, begin:end]
        parts.append(flash_attn_func(q, *part, window_size=window, return_lse=True, **options))
        options.pop("sink", None)  # once
    return merge_attention(*zip(*reversed(parts), strict=True))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@targets()
def test_parts_are_the_whole(target: Target, cuts: tuple[int, ...]) -> None:
    q, k, v = (target.tensor(2, *shape, 32) for shape in ((40, 4), (240, 2), (240, 2)))
    sink = torch.tensor([0.5, -1.0, 2.0, 0.0], device=target.device)
    options = {"softcap": 3.0, "sink": sink}
    exact, low = (
        attention_reference(*(x.to(dtype) for x in (q, k, v)), causal=True, **options)[:2]
        for dtype in (torch.float64, q.dtype)
    )
    out, lse = over_parts(q, k, v, cuts, **options)
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1], options["softcap"])


@targets(ONE_DTYPE)
def test_gradients(target: Target) -> None:
    q, k, v = (target.tensor(1, n, 2, 16).requires_grad_() for n in (40, 100, 100))
    grad_out, grad_lse = torch.randn(1, 40, 2, 16), torch.randn(1, 2, 40)
    found = []
    whole = flash_attn_func(q, k, v, causal=True, return_lse=True)
    for results in (over_parts(q, k, v, (0, 30)), whole):
        weights = [w.to(x) for w, x in zip((grad_out, grad_lse), results, strict=True)]
        found.append(torch.autograd.grad(results, (q, k, v), weights))
    for merged, whole in zip(*found, strict=True):
        torch.testing.assert_close(merged, whole, atol=2e-2, rtol=2e-2)


def test_packed() -> None:
    q, k, v = (torch.randn(9, 2, 8) for _ in "qkv")
    cu, lengths = cumulative(4, 5), (5, 5)
    whole = flash_attn_func(
        *(x.unsqueeze(0) for x in (q[4:], torch.cat([k[4:], k[:5]]), torch.cat([v[4:], v[:5]]))),
        return_lse=True,
    )
    own = flash_attn_varlen_func(q, k, v, cu, cu, *lengths, return_lse=True)
    others = flash_attn_varlen_func(
        q, k, v, cu, torch.tensor([0, 0, 5], dtype=torch.int32), *lengths, return_lse=True
    )
    out, lse = merge_attention([own[0], others[0]], [own[1], others[1]])
    torch.testing.assert_close(out[4:], whole[0][0])
    torch.testing.assert_close(lse[:, 4:], whole[1][0])
    assert torch.equal(out[:4], own[0][:4])  # its second part is empty


def test_rows_without_keys() -> None:
    out, lse = torch.zeros(1, 3, 2, 4), torch.full((1, 2, 3), -torch.inf)
    lse.requires_grad_()
    merged, merged_lse = merge_attention([out, out], [lse, lse])
    assert not merged.any()
    assert (merged_lse == -torch.inf).all()
    (grad,) = torch.autograd.grad(merged.sum(), lse)
    assert not grad.any()


def test_any_derivative() -> None:
    outs = [torch.randn(1, 2, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    lses = [torch.randn(1, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def merged(*parts: Tensor) -> tuple[Tensor, Tensor]:
        return merge_attention(parts[:2], parts[2:])

    assert gradcheck(merged, (*outs, *lses))
    assert gradgradcheck(merged, (*outs, *lses))


OUT, LSE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 3)
WRONG: list[tuple[Any, Any, type[Exception], str]] = [
    (OUT, [LSE], TypeError, "outs must be a list or tuple, got Tensor"),
    ([], [], ValueError, "at least one, got 0 and 0"),
    ([OUT, OUT], [LSE], ValueError, "got 2 and 1"),
    ([OUT, None], [LSE, LSE], TypeError, r"outs\[1\] must be a torch.Tensor"),
    ([OUT, OUT.double()], [LSE, LSE], TypeError, r"outs\[1\] must have the dtype of outs\[0\]"),
    ([OUT], [LSE.int()], TypeError, r"lses\[0\] must have the dtype"),
    ([OUT, OUT[:1]], [LSE, LSE], ValueError, r"outs\[1\] must have the shape of outs\[0\]"),
    ([OUT], [LSE.mT], ValueError, r"lses\[0\] must have shape \(2, 4, 3\), got \(2, 3, 4\)"),
    ([OUT], [LSE.to("meta")], ValueError, "on the device of outs"),
]


@pytest.mark.parametrize(("outs", "lses", "error", "message"), WRONG)
def test_errors(outs: Any, lses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        merge_attention(outs, lses)


def test_compiled() -> None:
    parts = [torch.randn(2, 3, 4, 5) for _ in range(2)], [torch.randn(2, 4, 3) for _ in range(2)]
    compiled = torch.compile(merge_attention, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(*parts), merge_attention(*parts), strict=True):
        torch.testing.assert_close(found, expected)

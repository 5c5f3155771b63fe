"""Calls that go straight to native code must be those that could, and do what the others do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import cpu_tensors_on
from torch import Tensor
from torch.nn import Parameter

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch is older than 2.10"
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Calls:
    """Counts native calls of each kind; direct ones only if they were taken."""

    def __init__(self, direct: bool) -> None:
        backend = backends.load("cpu")
        self.direct = self.other = 0

        def count_direct(function: Any) -> Any:
            def call(*args: Any) -> bool:
                done: bool = function(*args)
                self.direct += done
                return done

            return call if direct else None

        class Counting(backends.Backend):
            def run(inner, *args: Any) -> Any:  # noqa: N805
                self.other += 1
                return super().run(*args)

        fields = {field.name: getattr(backend, field.name) for field in dataclasses.fields(backend)}
        fields["forward_direct"] = count_direct(backend.forward_direct)
        fields["backward_direct"] = count_direct(backend.backward_direct)
        self.backend = Counting(**fields)


@contextmanager
def counted(direct: bool = True) -> Iterator[Calls]:
    with cpu_tensors_on("cpu"), pytest.MonkeyPatch.context() as patch:
        calls = Calls(direct)
        patch.setattr(backends, "for_cpu_tensors", calls.backend)
        yield calls


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, 5, 4, 8)
    k, v = torch.randn(2, 2, 7, 2, 8)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window_size": (2, 1)},
        {"window_size": (2, 1), "causal": True},
        {"window_size": (2**62, 2**62)},
        {"softmax_scale": 0.3, "softcap": 2.0},
        {"softmax_scale": 0, "dropout_p": 0, "softcap": 2},
        {"causal": 1, "window_size": [2, 1]},
        {"deterministic": True},
    ],
    ids=str,
)
def test_same_as_other_calls(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Bit for bit, with and without gradients."""
    tensors = qkv(dtype)
    leaves = [x.clone().requires_grad_() for x in tensors]
    grad = torch.randn(2, 5, 4, 8).to(dtype)

    def results() -> list[Tensor]:
        out, lse, _ = flash_attn_func(*leaves, **options, return_attn_probs=True)
        same = flash_attn_func(*leaves, **options)
        return [
            flash_attn_func(*tensors, **options),
            *(out, lse, *torch.autograd.grad(out, leaves, grad)),
            *(same, *torch.autograd.grad(same, leaves, grad)),
        ]

    with counted() as calls:
        ours = results()
    assert (calls.direct, calls.other) == (5, 0)
    with counted(direct=False) as calls:
        others = results()
    assert calls.direct == 0
    for x, y in zip(ours, others, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("view", [transposed, lambda x: x[:1].expand(x.shape), lambda x: x[:, 1:]])
def test_strides(view: Any) -> None:
    tensors = [view(x) for x in qkv()]
    with counted() as calls:
        ours = flash_attn_func(*tensors)
    assert calls.direct == 1
    assert ours.is_contiguous()
    with counted(direct=False):
        torch.testing.assert_close(ours, flash_attn_func(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize("at", range(3), ids=["q", "k", "v"])
@pytest.mark.parametrize("view", [lambda x: x[..., ::2], torch._neg_view], ids=["stride", "neg"])
def test_tensors_that_are_not_in_memory_as_they_are(view: Any, at: int) -> None:
    """What the memory holds is not the tensor, or not as a kernel reads it."""
    tensors = [x if i == at else view(x).resolve_neg().contiguous() for i, x in enumerate(qkv())]
    tensors[at] = view(tensors[at])
    copies = [x.resolve_neg().contiguous() for x in tensors]
    torch.testing.assert_close(flash_attn_func(*tensors), flash_attn_func(*copies), rtol=0, atol=0)


def test_no_queries() -> None:
    q, k, v = qkv()
    with counted() as calls:
        assert flash_attn_func(q[:, :0], k, v).shape == (2, 0, 4, 8)
    assert (calls.direct, calls.other) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_p": 0.5},
        {"sink": torch.zeros(4)},
        {"alibi_slopes": torch.zeros(4)},
        {"return_attn_probs": True, "sink": torch.zeros(4)},
    ],
    ids=str,
)
def test_options_that_need_more(options: dict[str, Any]) -> None:
    with counted() as calls:
        flash_attn_func(*qkv(), **options)
    assert calls.direct == 0
    assert calls.other >= 1


def test_parameters_and_inference_mode() -> None:
    tensors = qkv()
    expected = flash_attn_func(*tensors)
    frozen = [Parameter(x, requires_grad=False) for x in tensors]
    torch.testing.assert_close(flash_attn_func(*frozen), expected, rtol=0, atol=0)
    with torch.inference_mode(), counted() as calls:
        assert flash_attn_func(*tensors).is_inference()
    assert calls.direct == 1


def test_large_problems_on_two_threads() -> None:
    """The native call owns its lse and workspace, whatever their size."""
    q, k, v = (torch.randn(2, 300, 4, 64, requires_grad=True) for _ in range(3))
    grad = torch.randn(2, 300, 4, 64)

    def results() -> list[Tensor]:
        out = flash_attn_func(q, k, v, causal=True, deterministic=True)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)]

    with counted() as calls:
        ours = results()
    assert calls.direct == 2
    with counted(direct=False):
        for x, y in zip(ours, results(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def without_memory(x: Tensor) -> list[Tensor]:
    freed = x.detach().clone()
    freed.untyped_storage().resize_(0)
    with_offset = torch.stack([x.detach(), x.detach()])[1]
    functional = torch._to_functional_tensor(with_offset)
    freed_with_offset = with_offset.clone().expand(2, *x.shape).contiguous()[1]
    freed_with_offset.untyped_storage().resize_(0)
    return [
        torch._efficientzerotensor(x.shape),
        torch._to_functional_tensor(x.detach()),
        functional,
        freed,
        freed_with_offset,
        x.detach().to_sparse(),
    ]


@pytest.mark.parametrize("kind", range(6))
def test_native_code_refuses_tensors_without_memory(kind: int) -> None:
    """And does nothing."""
    backend = backends.load("cpu")
    assert backend.forward_direct is not None
    assert backend.backward_direct is not None
    q, k, v = qkv()
    out, lse = flash_attn_func(q, k, v, return_lse=True)
    options = (0.0, None, False, (-1, -1), 0.0)
    inputs = [q, k, v, out]
    grads = [torch.randn_like(q), *(torch.full_like(x, torch.nan) for x in (q, k, v))]
    for i, x in enumerate(inputs):
        changed = (*inputs[:i], without_memory(x)[kind], *inputs[i + 1 :])
        assert not backend.forward_direct(changed, 0, options, 1)
        assert not backend.backward_direct(changed, lse, tuple(grads), options, False, 1)
    for i, x in enumerate(grads):
        changed = (*grads[:i], without_memory(x)[kind], *grads[i + 1 :])
        assert not backend.backward_direct(tuple(inputs), lse, changed, options, False, 1)
    wrong = without_memory(lse)[kind]
    assert not backend.backward_direct(tuple(inputs), wrong, tuple(grads), options, False, 1)
    assert all(x.isnan().all() for x in grads[1:])
    assert backend.backward_direct(tuple(inputs), lse, tuple(grads), options, False, 1)
    assert not any(x.isnan().any() for x in grads[1:])


@pytest.mark.parametrize(
    ("change", "direct"),
    [
        (lambda lse: lse, 2),
        (lambda lse: lse.clone(), 2),
        (lambda lse: lse.transpose(1, 2).contiguous().transpose(1, 2), 1),
        (lambda lse: torch.stack([lse, lse], -1)[..., 0], 1),
    ],
)
def test_lse_is_looked_at(change: Any, direct: int) -> None:
    tensors = [x.requires_grad_() for x in qkv()]
    grad = torch.randn(2, 5, 4, 8)
    expected = torch.autograd.grad(flash_attn_func(*tensors), tensors, grad)
    with counted() as calls:
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: x, lambda x: change(x) if x.ndim == 3 else x
        )
        with hooks:
            out = flash_attn_func(*tensors)
        grads = torch.autograd.grad(out, tensors, grad)
    assert calls.direct == direct
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

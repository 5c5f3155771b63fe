"""Calls with biases that something observes, transforms or differentiates."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vjp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flash_attn2 import flash_attn_func
from flash_attn2.nn import Attention

SEQLEN_Q, SEQLEN_K = 20, 30
NAMES = ("q", "k", "v", "bias", "relative_bias")


def drawn(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, bias and relative_bias."""
    q = torch.randn(2, SEQLEN_Q, 4, 8, dtype=dtype)
    k, v = (torch.randn(2, SEQLEN_K, 2, 8, dtype=dtype) for _ in "kv")
    bias = torch.randn(4, 1, SEQLEN_K, dtype=dtype)
    relative = torch.randn(4, SEQLEN_Q + SEQLEN_K - 1)
    return [x.requires_grad_() for x in (q, k, v, bias, relative)]


def loss(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, relative_bias: Tensor) -> Tensor:
    out, lse = flash_attn_func(
        q, k, v, softcap=5.0, bias=bias, relative_bias=relative_bias, return_lse=True
    )
    return out.square().sum() + lse.sum()


def gradients(function: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*tensors), tensors)


def arguments_of_backward(tensors: list[Tensor]) -> dict[str, Any]:
    named = dict(zip(NAMES, (x.detach() for x in tensors), strict=True))
    out, lse, _ = torch.ops.flash_attn2.forward(**named)
    results = {"out": out, "lse": lse, "rng_state": None}
    incoming = {"grad_out": torch.randn_like(out), "grad_lse": torch.randn_like(lse)}
    return incoming | named | results


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False), (False, False)])
def test_opcheck(wanted: tuple[bool, bool]) -> None:
    tensors = drawn()
    named = dict(zip(NAMES, (x.detach() for x in tensors), strict=True))
    for x, given in zip(("bias", "relative_bias"), wanted, strict=True):
        named[x].requires_grad_(given)
    torch.library.opcheck(torch.ops.flash_attn2.forward, (), named)
    given = arguments_of_backward(tensors) | {
        "of_bias": wanted[0],
        "of_relative_bias": wanted[1],
    }
    torch.library.opcheck(torch.ops.flash_attn2.bias_backward, (), given)


def test_ops_and_functions_agree() -> None:
    tensors = drawn()
    given = arguments_of_backward(tensors)
    found = torch.ops.flash_attn2.bias_backward(**given, of_bias=True, of_relative_bias=True)
    out, lse = flash_attn_func(  # type: ignore[misc]
        *tensors[:3], bias=tensors[3], relative_bias=tensors[4], return_lse=True
    )
    expected = torch.autograd.grad((out, lse), tensors[3:], (given["grad_out"], given["grad_lse"]))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=dynamic)
    counts = []
    for _ in range(2):
        tensors = drawn()
        actual = torch.autograd.grad(compiled(*tensors), tensors)
        assert all(map(torch.equal, actual, gradients(loss, tensors)))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


def test_compiled_errors_name_the_argument() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager")
    q, k, v, bias, relative = drawn()
    with pytest.raises(Exception, match="bias must have 1 to 4 dimensions that broadcast"):
        compiled(q, k, v, bias[..., 1:], relative)


def test_fake_and_meta() -> None:
    q, k, v, bias, relative = (x.detach().to("meta") for x in drawn())
    out: Any = flash_attn_func(q, k, v, bias=bias, relative_bias=relative)
    assert out.shape == q.shape
    with pytest.raises(ValueError, match="relative_bias must be"):
        flash_attn_func(q, k, v, bias=bias, relative_bias=relative[:, 1:])


class Model(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, relative: Tensor) -> Tensor:
        out: Any = flash_attn_func(q, k, v, bias=bias, relative_bias=relative)
        return out  # type: ignore[no-any-return]


def test_exported() -> None:
    tensors = tuple(x.detach() for x in drawn())
    program = torch.export.export(Model(), tensors)
    assert torch.equal(program.module()(*tensors), Model()(*tensors))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    tensors = drawn()

    def recomputed(*x: Tensor) -> Any:
        return checkpoint(loss, *x, use_reentrant=reentrant)

    found = []
    for function in (recomputed, loss):
        function(*tensors).backward()
        found.append([x.grad for x in tensors])
        for x in tensors:
            x.grad = None
    assert all(map(torch.equal, *found))


def test_functional_gradients() -> None:
    tensors = drawn()
    expected = gradients(loss, tensors)
    actual = grad(loss, tuple(range(5)))(*tensors)
    assert all(map(torch.equal, actual, expected))
    _, pull = vjp(loss, *tensors)
    assert all(map(torch.equal, pull(torch.tensor(1.0)), expected))


def test_only_the_biases_are_differentiated() -> None:
    tensors = [x.detach() for x in drawn()]
    expected = grad(loss, tuple(range(5)))(*tensors)
    for i in (3, 4):
        assert torch.equal(grad(loss, i)(*tensors), expected[i])
        tensors[i].requires_grad_()
        (actual,) = torch.autograd.grad(loss(*tensors), tensors[i])
        assert torch.equal(actual, expected[i])
        tensors[i].requires_grad_(False)


@pytest.mark.parametrize(
    "mapped", [(0, 0, 0, 0, 0), (0, 0, 0, None, None), (None, None, None, 0, 0)]
)
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    tensors = [
        x.detach() if dim is None else torch.randn(3, *x.shape)
        for x, dim in zip(drawn(), mapped, strict=True)
    ]
    values = vmap(loss, mapped)(*tensors)
    grads = vmap(grad(loss, tuple(range(5))), mapped)(*tensors)
    for i in range(3):
        one = [x if dim is None else x[i] for x, dim in zip(tensors, mapped, strict=True)]
        one = [x.clone().requires_grad_() for x in one]
        torch.testing.assert_close(values[i], loss(*one))
        assert all(map(torch.equal, (x[i] for x in grads), gradients(loss, one)))


def test_autocast() -> None:
    """q, k and v are cast; biases stay, and their gradients are in their own dtype."""
    q, k, v, bias, relative = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        out: Any = flash_attn_func(q, k, v, bias=bias, relative_bias=relative)
    low = (x.bfloat16() for x in (q, k, v))
    expected: Any = flash_attn_func(*low, bias=bias, relative_bias=relative)
    assert torch.equal(out, expected)
    weight = torch.randn_like(out)
    grads = [torch.autograd.grad(x, (bias, relative), weight) for x in (out, expected)]
    assert all(map(torch.equal, *grads))
    assert grads[0][0].dtype == torch.float32


def test_negated_biases() -> None:
    q, k, v, bias, _ = (x.detach() for x in drawn())
    negated = torch.view_as_complex(torch.stack([bias, bias], -1)).conj().imag
    assert negated.is_neg()
    out = flash_attn_func(q, k, v, bias=negated)
    assert torch.equal(out, flash_attn_func(q, k, v, bias=-bias))


def test_flops() -> None:
    """Gradients of biases count their two products; the rest is as without."""
    counts = []
    for biases in (0, 1, 2):
        tensors = drawn()
        with FlopCounterMode(display=False) as counter:
            out: Any = flash_attn_func(
                *tensors[:3],
                bias=tensors[3] if biases > 0 else None,
                relative_bias=tensors[4] if biases > 1 else None,
            )
            out.sum().backward()
        counts.append(counter.get_total_flops())
    product = 2 * 2 * 4 * SEQLEN_Q * SEQLEN_K * 8
    assert counts == [7 * product, 9 * product, 11 * product]


def test_saved_tensors_may_move() -> None:
    tensors = drawn()
    expected = gradients(loss, tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        actual = gradients(loss, tensors)
    assert all(map(torch.equal, actual, expected))


def test_no_forward_mode() -> None:
    tensors = [x.detach() for x in drawn()]
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(functools.partial(loss, *tensors[:4]), (tensors[4],), (tensors[4],))


def test_module() -> None:
    attention = Attention(32, 4, 2)
    x = torch.randn(2, SEQLEN_Q, 32)
    bias = torch.randn(4, SEQLEN_Q, SEQLEN_Q, requires_grad=True)
    relative = torch.randn(4, 2 * SEQLEN_Q - 1, requires_grad=True)
    out = attention(x, bias=bias, relative_bias=relative)
    q, k, v = (t.transpose(1, 2) for t in attention.project(x))
    index = torch.arange(SEQLEN_Q) - torch.arange(SEQLEN_Q)[:, None] + SEQLEN_Q - 1
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias + relative[:, index], enable_gqa=True
    )
    expected = attention.out_proj(expected.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(out, expected)
    parameters = [*attention.parameters(), bias, relative]
    grads = (torch.autograd.grad(y.square().sum(), parameters) for y in (out, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    state = dict(attention.named_parameters())
    again = functional_call(attention, state, (x,), {"bias": bias, "relative_bias": relative})
    assert torch.equal(again, out)

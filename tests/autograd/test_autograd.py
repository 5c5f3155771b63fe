"""Autograd of the public functions: gradcheck, transforms, checkpointing, autocast, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from functions import FUNCTIONS, each_function, problem
from support import ONE_DTYPE, Target, targets
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flash_attn2 import flash_attn_func


def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)


@each_function
def test_gradcheck(form: str) -> None:
    attend, leaves = problem(form, torch.float64)
    # Rows that see nothing have an infinite lse, of which there are no finite differences.
    options = {"causal": True, "softcap": 2.0, "window_size": (4, 0), "return_attn_probs": True}

    def results(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, _ = attend(*leaves, **options)
        return out, lse.masked_fill(lse == -torch.inf, 0).double()

    # lse has the precision of float32.
    assert torch.autograd.gradcheck(lambda *x: results(*x)[0], leaves)
    assert torch.autograd.gradcheck(results, leaves, eps=1e-3, atol=1e-2)


@each_function
def test_gradcheck_of_dropout_and_sink(form: str) -> None:
    attend, leaves = problem(form, torch.float64)
    num_heads = leaves[0].shape[-2]
    sink = torch.randn(num_heads, requires_grad=True)
    slopes = torch.rand(num_heads)

    def out(sink: Tensor, *leaves: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend(*leaves, sink=sink.float(), alibi_slopes=slopes, dropout_p=0.3)

    assert torch.autograd.gradcheck(lambda *x: out(sink.detach(), *x), leaves)
    leaves = [x.detach() for x in leaves]
    wide = sink.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: out(x, *leaves), wide, eps=1e-2, atol=1e-3, rtol=0.01)


@each_function
def test_only_what_requires_grad_gets_one(form: str) -> None:
    attend, leaves = problem(form)
    expected = gradients(attend, *leaves)
    for chosen, gradient in zip(leaves, expected, strict=True):
        some = [x if x is chosen else x.detach() for x in leaves]
        assert torch.equal(torch.autograd.grad(attend(*some).square().sum(), chosen)[0], gradient)
    with torch.no_grad():
        assert not attend(*leaves).requires_grad
    out, lse, probs = attend(*leaves, return_attn_probs=True)
    assert out.requires_grad
    assert lse.requires_grad
    assert not probs.requires_grad


def test_backward_twice_needs_retain_graph() -> None:
    attend, leaves = problem("dense")
    out = attend(*leaves)
    first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(out.sum(), leaves)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), leaves)


def test_inputs_that_change_before_backward_are_noticed() -> None:
    attend, leaves = problem("dense")
    x = leaves[1] * 1
    out = attend(leaves[0], x, leaves[2])
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@each_function
def test_second_derivative_is_refused(form: str) -> None:
    attend, leaves = problem(form)
    grads = torch.autograd.grad(attend(*leaves).square().sum(), leaves, create_graph=True)
    op = "varlen_backward" if "varlen" in form else "backward"
    with pytest.raises(NotImplementedError, match=rf"flash_attn2::{op} .* only once"):
        grads[0].sum().backward()


def test_slopes_have_no_gradient() -> None:
    attend, leaves = problem("dense")
    slopes = torch.rand(4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="alibi_slopes requires grad"):
        attend(*leaves, alibi_slopes=slopes)
    with torch.no_grad():
        attend(*leaves, alibi_slopes=slopes)


def test_forward_mode_is_refused() -> None:
    attend, leaves = problem("dense")
    leaves = [x.detach() for x in leaves]
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        attend(torch.autograd.forward_ad.make_dual(leaves[0], leaves[0]), *leaves[1:])


@pytest.mark.parametrize(
    ("form", "backend"),
    [*((form, "aot_eager") for form in FUNCTIONS), ("dense", "inductor"), ("varlen", "inductor")],
)
def test_compile(form: str, backend: str) -> None:
    torch._dynamo.reset()
    attend, leaves = problem(form)
    sink = torch.randn(leaves[0].shape[-2], requires_grad=True)

    def layer(sink: Tensor, *leaves: Tensor) -> Tensor:
        out, lse, _ = attend(
            *(2 * x for x in leaves), sink=sink, causal=True, return_attn_probs=True
        )
        return out.square().sum() + lse.nan_to_num(neginf=0).sum()

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    leaves = [sink, *leaves]
    actual, expected = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, layer))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_dropout_has_one_mask() -> None:
    torch._dynamo.reset()
    attend, leaves = problem("dense")
    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(7)
        results.append(torch.autograd.grad(function(*leaves, dropout_p=0.5).sum(), leaves))
    assert all(map(torch.equal, *results))


@each_function
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool, form: str) -> None:
    attend, leaves = problem(form)

    def layer(*leaves: Tensor) -> Tensor:
        return attend(*(x * 2 for x in leaves), causal=True, dropout_p=0.5)

    torch.manual_seed(7)
    expected = gradients(layer, *leaves)
    torch.manual_seed(7)
    checkpointed = checkpoint(layer, *leaves, use_reentrant=use_reentrant).square().sum()
    checkpointed.backward()
    assert all(torch.equal(x.grad, grad) for x, grad in zip(leaves, expected, strict=True))


@each_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, form: str) -> None:
    attend, leaves = problem(form)
    sink = torch.randn(leaves[0].shape[-2])
    lower = [x.detach().to(dtype).requires_grad_() for x in leaves]
    expected = attend(*lower, sink=sink, return_attn_probs=True)
    expected_grads = torch.autograd.grad(expected[0].square().sum(), lower)
    torch._dynamo.reset()
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype):
            actual = function(*leaves, sink=sink, return_attn_probs=True)
        assert all(map(torch.equal, actual, expected))
        grads = torch.autograd.grad(actual[0].square().sum(), leaves)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert torch.equal(grad, expected_grad.float())


def test_autocast_leaves_float64_alone() -> None:
    attend, leaves = problem("dense", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*leaves)
        assert torch.equal(torch.ops.flash_attn2.forward(*leaves)[0], out)
    assert out.dtype == torch.float64


@each_function
def test_func_grad_and_vmap(form: str) -> None:
    attend, leaves = problem(form)
    leaves = [x.detach() for x in leaves]
    stacked = [torch.stack([x, 2 * x, -x]) for x in leaves]
    argnums = tuple(range(len(leaves)))

    def loss(*leaves: Tensor) -> Tensor:
        out, lse, _ = attend(*leaves, return_attn_probs=True)
        return out.square().sum() + lse.nan_to_num(neginf=0).sum()

    each = [torch.func.grad(loss, argnums)(*(x[i] for x in stacked)) for i in range(3)]
    required = [x.requires_grad_() for x in leaves]
    assert all(map(torch.equal, each[0], torch.autograd.grad(loss(*required), required)))
    leaves = [x.detach() for x in leaves]
    together = torch.func.vmap(torch.func.grad(loss, argnums))(*stacked)
    of_sum = torch.func.grad(lambda *x: torch.func.vmap(loss)(*x).sum(), argnums)(*stacked)
    one_mapped = torch.func.vmap(loss, (1, *(None,) * (len(leaves) - 1)))(
        stacked[0].movedim(0, 1), *leaves[1:]
    )
    for i in range(3):
        assert all(torch.equal(x[i], y) for x, y in zip(together, each[i], strict=True))
        assert all(torch.equal(x[i], y) for x, y in zip(of_sum, each[i], strict=True))
        assert torch.equal(one_mapped[i], loss(stacked[0][i], *leaves[1:]))


def test_vmap_of_dropout_has_a_mask_for_each() -> None:
    attend, leaves = problem("dense")
    twice = torch.stack([leaves[0], leaves[0]])

    def dropped(q: Tensor) -> Tensor:
        return attend(q, *leaves[1:], dropout_p=0.5)

    with pytest.raises(RuntimeError, match="randomness='different', got 'error'"):
        torch.vmap(dropped)(twice)
    first, second = torch.vmap(dropped, randomness="different")(twice)
    assert not torch.equal(first, second)


@each_function
def test_saved_tensors_are_inputs_and_results(form: str) -> None:
    """What is kept for backward costs no memory but out, lse and the state of the generator."""
    attend, leaves = problem(form)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out, lse, _ = attend(*leaves, dropout_p=0.1, return_attn_probs=True)
    given = [*leaves, *(x for x in FUNCTIONS[form][2] if isinstance(x, Tensor))]
    for x in (*given, out, lse):
        kept.pop(x.untyped_storage().data_ptr(), None)
    assert list(kept.values()) == [16]


def allocated_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """All that torch allocates during a call, whether freed or not."""
    if device.type == "cuda":
        before = torch.cuda.memory_stats()["allocated_bytes.all.allocated"]
        function()
        return torch.cuda.memory_stats()["allocated_bytes.all.allocated"] - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    return sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")


@targets(ONE_DTYPE)
@pytest.mark.parametrize("deterministic", [False, True])
def test_memory_of_backward(deterministic: bool, target: Target) -> None:
    """Never dK or dV of all query heads, nor more for more blocks of keys."""
    case = Case(64, 1, seqlen_q=64, seqlen_k=640, num_heads=16, num_heads_kv=1)
    q, k, v = (x.requires_grad_() for x in case.qkv(target))
    out = flash_attn_func(q, k, v, deterministic=deterministic)
    grad_out = torch.randn_like(out)
    allocated = allocated_bytes(lambda: torch.autograd.grad(out, (q, k, v), grad_out), q.device)
    rows = case.seqlen_q * case.num_heads
    grads = q.nbytes + k.nbytes + v.nbytes
    assert grads <= allocated <= grads + 8 * k.numel() + 4 * q.numel() + 16 * rows + 4096

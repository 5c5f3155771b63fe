"""Gradients of dense attention against float64 autograd of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cases import BUCKETS, EVERYTHING, FEATURES, LAYOUTS, Case
from support import (
    CPU_FLOAT32,
    ONE_DTYPE,
    TARGETS,
    Target,
    check_dense_gradients,
    emulator_options,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_kvpacked_func, flash_attn_qkvpacked_func
from flash_attn2._impl.backends import Backend
from flash_attn2.reference import attention_reference

# Every feature in one dtype where kernels are slow; test_sm80_backward has the other.
FEATURE_TARGETS = [t for t in TARGETS if t.backend != "sm80-emulated" or t in ONE_DTYPE]


@targets(FEATURE_TARGETS)
@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_features(case: Case, target: Target) -> None:
    check_dense_gradients(*case.qkv(target), **case.all_options(target.device))


@targets(FEATURE_TARGETS)
@pytest.mark.parametrize("head_dim", [*BUCKETS, 1, 8, 13, 40, 80, 100, 160, 248])
def test_head_dims(head_dim: int, target: Target) -> None:
    case = Case(head_dim, batch=1, seqlen_q=77, seqlen_k=150, num_heads=2, num_heads_kv=1)
    check_dense_gradients(*case.qkv(target), causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_everything_at_every_bucket(head_dim: int, target: Target) -> None:
    case = Case(head_dim, batch=1, alibi="batch", sink=True, options=EVERYTHING)
    check_dense_gradients(*case.qkv(target), **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("seqlen_q", [1, 15, 16, 63, 64, 65, 129])
@pytest.mark.parametrize("seqlen_k", [1, 63, 64, 65, 129])
def test_edges_of_tiles(seqlen_q: int, seqlen_k: int, target: Target) -> None:
    q, k, v = Case(32, 1, seqlen_q, seqlen_k, num_heads=1, num_heads_kv=1).qkv(target)
    check_dense_gradients(q, k, v)
    check_dense_gradients(q, k, v, window_size=(20, 3))


@targets(ONE_DTYPE)
def test_scores_of_any_size(target: Target) -> None:
    q, k, v = Case(num_heads_kv=4).qkv(target)
    check_dense_gradients(5 * q, 5 * k, v)
    check_dense_gradients(q, k, v, softcap=1e-3)
    check_dense_gradients(q, k, v, sink=torch.tensor([80.0, -80.0, 0.0, 3e4]).to(q.device))
    # With few keys some rows have scores far below 0, against which a key past the end would win.
    check_dense_gradients(12 * q, 12 * k[:, :3], v[:, :3])


@targets(FEATURE_TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: Callable[[Tensor], Tensor], target: Target) -> None:
    q, k, v = map(layout, Case(40).qkv(target))
    check_dense_gradients(q, k, v, causal=True)


def gradients(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, **options: Any) -> Any:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, deterministic=True, **options)
    return torch.autograd.grad(out, leaves, grad_out)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [40, 100])
def test_grad_out_may_have_any_layout(head_dim: int, target: Target) -> None:
    q, k, v = Case(head_dim, 2, 20, 35, 2, 1).qkv(target)
    scalar = torch.ones((), dtype=q.dtype, device=q.device)
    for grad_out in (
        *(layout(torch.randn_like(q)) for layout in LAYOUTS),
        scalar.expand(q.shape),
        torch._neg_view(torch.randn_like(q)),
    ):
        expected = gradients(q, k, v, grad_out.resolve_neg().contiguous())
        assert all(map(torch.equal, gradients(q, k, v, grad_out), expected))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_gradients_of_another_dtype_are_converted(dtype: torch.dtype, target: Target) -> None:
    q, k, v = Case().qkv(target)
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    grad_out, grad_lse = torch.randn_like(out).to(dtype), torch.randn_like(lse).to(dtype)

    def backward(grad_out: Tensor, grad_lse: Tensor) -> Any:
        return torch.ops.flash_attn2.backward(
            grad_out, grad_lse, q, k, v, out, lse, None, deterministic=True
        )

    expected = backward(grad_out.to(q.dtype), grad_lse.float())
    assert all(map(torch.equal, backward(grad_out, grad_lse.mT.contiguous().mT), expected))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("result", ["out", "lse"])
def test_one_result_alone(result: str, target: Target) -> None:
    """A result that is not used is as one whose gradient is zero."""
    q, k, v = Case(sink=True).qkv(target)
    sink = torch.randn(4, device=q.device)
    leaves = [x.requires_grad_() for x in (q, k, v, sink)]
    out, lse, _ = flash_attn_func(
        q, k, v, sink=sink, causal=True, deterministic=True, return_attn_probs=True
    )
    used, unused = (out, lse) if result == "out" else (lse, out)
    grad = torch.randn_like(used)
    alone = torch.autograd.grad(used, leaves, grad, retain_graph=True)
    both = torch.autograd.grad((used, unused), leaves, (grad, torch.zeros_like(unused)))
    assert all(map(torch.equal, alone, both))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("head_dim", [64, 20])
def test_packed_forms_have_packed_gradients(head_dim: int, target: Target) -> None:
    q, k, v = Case(head_dim, seqlen_q=60, seqlen_k=60, num_heads_kv=4).qkv(target)
    grad_out = torch.randn_like(q)
    grad_q, grad_k, grad_v = gradients(q, k, v, grad_out, causal=True)
    kv = torch.stack([k, v], 2).requires_grad_()
    qkv = torch.stack([q, k, v], 2).requires_grad_()
    q = q.detach().requires_grad_()
    flash_attn_kvpacked_func(q, kv, causal=True, deterministic=True).backward(grad_out)
    flash_attn_qkvpacked_func(qkv, causal=True, deterministic=True).backward(grad_out)
    assert torch.equal(q.grad, grad_q)
    assert torch.equal(kv.grad, torch.stack([grad_k, grad_v], 2))
    assert torch.equal(qkv.grad, torch.stack([grad_q, grad_k, grad_v], 2))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int], target: Target) -> None:
    batch, seqlen_q, seqlen_k = shape
    leaves = Case(batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k).qkv(target)
    leaves = [x.requires_grad_() for x in (*leaves, torch.randn(4, device=target.device))]
    q, k, v, sink = leaves
    out, lse, _ = flash_attn_func(q, k, v, sink=sink, return_attn_probs=True)
    *grads, grad_sink = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    for x, grad in zip((q, k, v), grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(x))
    # Rows that see no key have the sink as their lse.
    rows = batch * seqlen_q if seqlen_k == 0 else 0
    assert torch.equal(grad_sink, torch.full_like(sink, rows))


@targets(ONE_DTYPE)
def test_a_sink_that_takes_nothing(target: Target) -> None:
    """Not even of rows that see no key, whose lse is -inf: it has no gradient, and others are as
    without it.
    """
    leaves = [x.requires_grad_() for x in Case(seqlen_q=70, seqlen_k=40).qkv(target)]
    sink = torch.full((4,), -torch.inf, device=target.device).requires_grad_()
    found = []
    for options in ({}, {"sink": sink}):
        out, lse = flash_attn_func(*leaves, causal=True, return_lse=True, **options)
        inputs = [*leaves, *options.values()]
        found.append(torch.autograd.grad(out.sum() + lse.sum(), inputs))
    assert torch.equal(found[1][3], torch.zeros_like(sink))
    for without, with_sink in zip(found[0], found[1], strict=False):
        torch.testing.assert_close(with_sink, without)


@targets()
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_deterministic_means_bitwise(head_dim: int, target: Target) -> None:
    q, k, v = Case(head_dim, 1, 100, 260, 2, 1).qkv(target)
    options = {"causal": True, "dropout_p": 0.1}
    grad_out = torch.randn_like(q)
    results = []
    for schedule in ("sums=ordered", "seed=2,ctas=4,async=random", "seed=3,ctas=2"):
        torch.manual_seed(5)
        if target.backend == "sm80-emulated":
            with emulator_options(schedule):
                results.append(gradients(q, k, v, grad_out, **options))
        else:
            results.append(gradients(q, k, v, grad_out, **options))
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


def test_what_reaches_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """No zeros in place of a gradient that is not there; torch may ask for determinism too."""
    problems = []
    run = Backend.run

    def spy(self: Backend, entry_point: Any, problem: Any, device: torch.device) -> None:
        problems.append(problem)
        run(self, entry_point, problem, device)

    monkeypatch.setattr(Backend, "run", spy)
    q, k, v = (x.requires_grad_() for x in Case(16, 1, 4, 4).qkv(CPU_FLOAT32))
    flash_attn_func(q, k, v).sum().backward()
    flash_attn_func(q, k, v, deterministic=True).sum().backward()
    out = flash_attn_func(q, k, v).sum()
    torch.use_deterministic_algorithms(True)
    try:
        out.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert [p["deterministic"] for p in problems if "grad_out" in p] == [False, True, True]
    for problem in problems:
        assert "grad_lse" not in problem


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [40, 64, 128, 256])
def test_float32_is_as_exact_as_torch(head_dim: int, causal: bool) -> None:
    leaves = [x.requires_grad_() for x in Case(head_dim, 1, 256, 256, 4, 4).qkv(CPU_FLOAT32)]
    grad_out = torch.randn_like(leaves[0])

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)

    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    exact_out, _, _ = attention_reference(*exact_leaves, causal=causal)
    exact = torch.autograd.grad(exact_out, exact_leaves, grad_out.double())
    torch_grads = torch.autograd.grad(sdpa(*leaves), leaves, grad_out)
    grads = torch.autograd.grad(flash_attn_func(*leaves, causal=causal), leaves, grad_out)
    for grad, torch_grad, right in zip(grads, torch_grads, exact, strict=True):
        assert (grad - right).abs().max() <= 4 * (torch_grad - right).abs().max()

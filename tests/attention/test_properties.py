"""Random problems against the float64 reference, and laws that hold between problems."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, Packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import (
    ONE_DTYPE,
    TARGETS,
    Target,
    check_dense,
    check_dense_gradients,
    check_varlen,
    check_varlen_gradients,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func

EXAMPLES = {"cpu": 30, "sm80-emulated": 6, "cuda": 30}
LONGEST = {"cpu": 200, "sm80-emulated": 140, "cuda": 300}
SOME_TARGETS = [target for target in TARGETS if target.dtype is not torch.float64]

Draw = Callable[[st.SearchStrategy[Any]], Any]


# Gradients rest on the difference dP - D. Where it comes from few probabilities that are not near 0
# or 1, it may happen to have a small error in the reference, so these are problems of many.
SEVERAL = 24


def draw_options(draw: Draw, several: bool) -> dict[str, Any]:
    bound = st.one_of(st.just(-1), st.integers(SEVERAL if several else 0, 100))
    return {
        "causal": draw(st.booleans()),
        "window_size": draw(st.tuples(bound, bound)),
        "softcap": draw(st.sampled_from([0.0, 0.0, 1.0, 30.0])),
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.1, 0.3 if several else 0.9])),
        "softmax_scale": draw(st.sampled_from([None, None, 0.05, 0.1 if several else 1.0])),
    }


def draw_heads(draw: Draw) -> dict[str, Any]:
    num_heads_kv = draw(st.integers(1, 3))
    return {
        # Large enough for the largest error of a few roundings to be typical.
        "head_dim": draw(st.integers(16, 256)),
        "num_heads_kv": num_heads_kv,
        "num_heads": num_heads_kv * draw(st.integers(1, 3)),
        "alibi": draw(st.sampled_from([None, None, "heads", "batch"])),
        "sink": draw(st.booleans()),
    }


@st.composite
def dense_cases(draw: Draw, longest: int, several: bool = False) -> Case:
    shortest = SEVERAL if several else 1
    return Case(
        batch=draw(st.integers(1, 2)),
        seqlen_q=draw(st.integers(shortest, longest)),
        seqlen_k=draw(st.integers(shortest, longest)),
        options=draw_options(draw, several),
        **draw_heads(draw),
    )


@st.composite
def packed_cases(draw: Draw, longest: int, several: bool = False) -> Packed:
    shortest = SEVERAL if several else 1
    batch = draw(st.integers(1, 4))
    seqlens = st.lists(
        st.one_of(st.just(0), st.integers(shortest, longest)), min_size=batch, max_size=batch
    ).map(tuple)
    seqlens_k = draw(seqlens)
    used = [draw(st.integers(min(n, shortest - 1), n)) for n in seqlens_k]
    return Packed(
        seqlens_q=draw(seqlens),
        seqlens_k=seqlens_k,
        seqused_k=tuple(used) if draw(st.booleans()) else None,
        spare_rows=draw(st.integers(0, 9)),
        slack=draw(st.sampled_from([0, 1, 50])),
        options=draw_options(draw, several),
        **draw_heads(draw),
    )


def for_random(
    cases: Callable[[int], st.SearchStrategy[Any]], target: Target, check: Callable[[Any], None]
) -> None:
    strategy = cases(LONGEST[target.backend])
    explore = settings().max_examples > settings.get_profile("fixed").max_examples
    examples = settings().max_examples if explore else EXAMPLES[target.backend]
    settings(max_examples=examples, suppress_health_check=list(HealthCheck))(
        given(strategy)(check)
    )()


@targets(SOME_TARGETS)
def test_dense(target: Target) -> None:
    def check(case: Case) -> None:
        check_dense(*case.qkv(target), **case.all_options(target.device))

    for_random(dense_cases, target, check)


@targets(SOME_TARGETS)
def test_varlen(target: Target) -> None:
    def check(case: Packed) -> None:
        options = case.all_options(target.device)
        check_varlen(*case.qkv(target), case.packing(target.device), **options)

    for_random(packed_cases, target, check)


@targets(SOME_TARGETS)
def test_dense_gradients(target: Target) -> None:
    def check(case: Case) -> None:
        options = case.all_options(target.device)
        check_dense_gradients(*case.qkv(target), of_sink=False, **options)

    for_random(functools.partial(dense_cases, several=True), target, check)


@targets(SOME_TARGETS)
def test_varlen_gradients(target: Target) -> None:
    def check(case: Packed) -> None:
        options = case.all_options(target.device)
        packing = case.packing(target.device)
        check_varlen_gradients(*case.qkv(target), packing, of_sink=False, **options)

    for_random(functools.partial(packed_cases, several=True), target, check)


@targets()
def test_bitwise_reproducible(target: Target) -> None:
    case = Case(options={"causal": True, "dropout_p": 0.1})
    q, k, v = case.qkv(target)
    results = []
    for _ in range(3):
        torch.manual_seed(5)
        results.append(flash_attn_func(q, k, v, **case.options))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@targets()
@pytest.mark.parametrize("causal", [False, True])
def test_batch_and_heads_are_independent(causal: bool, target: Target) -> None:
    q, k, v = Case(batch=3, num_heads=6, num_heads_kv=3).qkv(target)
    whole = flash_attn_func(q, k, v, causal=causal)
    part = flash_attn_func(q[1:2, :, 2:4], k[1:2, :, 1:2], v[1:2, :, 1:2], causal=causal)
    assert torch.equal(whole[1:2, :, 2:4], part)


@targets(ONE_DTYPE)
def test_grouped_heads_equal_repeated_heads(target: Target) -> None:
    q, k, v = Case(num_heads=6, num_heads_kv=2).qkv(target)
    repeated = flash_attn_func(q, k.repeat_interleave(3, 2), v.repeat_interleave(3, 2))
    assert torch.equal(flash_attn_func(q, k, v), repeated)


@targets(ONE_DTYPE)
def test_order_of_keys_does_not_matter(target: Target) -> None:
    q, k, v = Case().qkv(target)
    order = torch.randperm(k.shape[1], device=k.device)
    torch.testing.assert_close(
        flash_attn_func(q, k, v), flash_attn_func(q, k[:, order], v[:, order]), atol=0.01, rtol=0.02
    )


def gradients(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, deterministic=True, **options)
    return torch.autograd.grad(out, leaves, grad_out)


@targets(ONE_DTYPE)
def test_gradient_of_batch_and_heads_is_independent(target: Target) -> None:
    q, k, v = Case(batch=2, num_heads=4, num_heads_kv=2).qkv(target)
    grad_out = torch.randn_like(q)
    whole = gradients(q, k, v, grad_out, causal=True)
    queries, keys = (slice(1, 2), slice(None), slice(2, 4)), (slice(1, 2), slice(None), slice(1, 2))
    part = gradients(q[queries], k[keys], v[keys], grad_out[queries], causal=True)
    for x, y, index in zip(whole, part, (queries, keys, keys), strict=True):
        assert torch.equal(x[index], y)


@targets(ONE_DTYPE)
def test_gradient_is_linear(target: Target) -> None:
    q, k, v = Case().qkv(target)
    grad_out = torch.randn_like(q)
    once, fourfold = (gradients(q, k, v, x, softcap=2.0) for x in (grad_out, 4 * grad_out))
    assert all(torch.equal(4 * x, y) for x, y in zip(once, fourfold, strict=True))


@targets(ONE_DTYPE)
def test_gradient_of_grouped_heads_is_the_sum_over_repeated_heads(target: Target) -> None:
    q, k, v = Case(num_heads=6, num_heads_kv=2).qkv(target)
    grad_out = torch.randn_like(q)
    grad_q, *grouped = gradients(q, k, v, grad_out)
    repeated_k, repeated_v = (x.repeat_interleave(3, 2) for x in (k, v))
    repeated_grad_q, *repeated = gradients(q, repeated_k, repeated_v, grad_out)
    assert torch.equal(grad_q, repeated_grad_q)
    for x, y in zip(grouped, repeated, strict=True):
        torch.testing.assert_close(
            x.float(), y.float().unflatten(2, (2, 3)).sum(3), atol=0.02, rtol=0.02
        )

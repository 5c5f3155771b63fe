"""Finite inputs of any size: what comes out is right, or at least finite and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import (
    TARGETS,
    Target,
    assert_lse,
    assert_within_rule,
    cumulative,
    drawn_rng_state,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2.reference import attention_reference

ON_CPU = [target for target in TARGETS if target.backend == "cpu"]
KERNELS = [target for target in TARGETS if target.backend != "cpu"]
HEAD_DIM = 16
HEADS, HEADS_KV = 2, 1
SAME_KERNEL = "one query takes the same kernel as many"

# Logits of any size are made of few significant bits, so that every dtype holds them exactly.
EXPONENTS = (-60, 6, 8, 10, 20, 26, 30, 33, 63, 126)


def with_exponents(exponents: Sequence[int], *few: tuple[int, int]) -> pytest.MarkDecorator:
    """Targets with exponents of logits: the CUDA kernels, which may be emulated, with few of them,
    in float16 and bfloat16."""
    taken = {torch.float16: [f[0] for f in few], torch.bfloat16: [f[1] for f in few]}
    pairs = [
        (target, exponent)
        for target in TARGETS
        for exponent in (exponents if target in ON_CPU else taken[target.dtype])
    ]
    return pytest.mark.parametrize(("target", "exponent"), pairs, ids=str, indirect=["target"])


def dense(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    return out, lse


def packed(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q = q.shape[:2]
    lengths = seqlen_q, k.shape[1]
    cu_seqlens = (cumulative(*[n] * batch, device=q.device.type) for n in lengths)
    out, lse, _ = flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)),
        *cu_seqlens,
        *lengths,
        return_attn_probs=True,
        **options,
    )
    return out.unflatten(0, (batch, seqlen_q)), lse.unflatten(1, (batch, seqlen_q)).transpose(0, 1)


def in_parts(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return flash_attn_with_kvcache(q, k, v, num_splits=3, return_softmax_lse=True, **options)


# Which body of the kernels: attend, seqlen_q and seqlen_k.
PATHS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], int, int]] = {
    "one_query": (dense, 1, 217),
    "tiles": (dense, 40, 217),
    "packed": (packed, 3, 217),
    "parts": (in_parts, 1, 470),
    "parts_of_tiles": (in_parts, 20, 470),
}
paths = pytest.mark.parametrize("path", PATHS)

# Logits by key, to be multiplied by a power of two.
PATTERNS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda key: -torch.ones_like(key),
    lambda key: key % 3 - 1,
    lambda key: key // 64 - 5,
    lambda key: 5 - key // 64,
    lambda key: torch.ones_like(key),
    lambda key: -1 - (key != 100).double(),
    lambda key: -(key // 64 % 2),
    lambda key: (key >= 192).double() * (key - 190).clamp(0, 10),
)


def all_patterns(seqlen_k: int, exponent: int, target: Target) -> Tensor:
    """(patterns, seqlen_k), such that times 2^exponent they are below 2^128."""
    key = torch.arange(seqlen_k, dtype=torch.float64)
    logits = torch.stack([pattern(key) for pattern in PATTERNS[: None if target in ON_CPU else 4]])
    return logits.clamp(-3, 3) if exponent > 120 else logits


def room_for(exponent: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Exponents of q, k and softmax_scale that make up `exponent`, below those that overflow."""
    most_q, most_k = (15, 12) if dtype is torch.float16 else (60, 60)
    of_q = max(-most_k, min(most_q, exponent // 2))
    of_k = max(-most_k, min(most_k, exponent - of_q))
    return of_q, of_k, exponent - of_q - of_k


def with_logits(
    logits: Tensor, exponent: int, seqlen_q: int, target: Target
) -> tuple[Tensor, Tensor, Tensor, float]:
    """q, k, v and softmax_scale of `logits` (batch, seqlen_k) times 2^exponent."""
    of_q, of_k, of_scale = room_for(exponent, target.dtype)
    batch, seqlen_k = logits.shape
    q = torch.zeros(batch, seqlen_q, HEADS, HEAD_DIM, dtype=torch.float64)
    k = torch.zeros(batch, seqlen_k, HEADS_KV, HEAD_DIM, dtype=torch.float64)
    q[..., 0] = 2.0**of_q
    k[..., 0] = (logits * 2.0**of_k)[..., None]
    q, k = (x.to(target.device, target.dtype) for x in (q, k))
    return q, k, target.tensor(*k.shape), 2.0**of_scale


def assert_right(
    attend: Callable[..., tuple[Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor, **options: Any
) -> None:
    out, lse = attend(q, k, v, **options)
    exact, low = (
        attention_reference(q.to(dtype), k.to(dtype), v.to(dtype), **options)
        for dtype in (torch.float64, q.dtype)
    )
    assert out.isfinite().all()
    assert_within_rule("out", out, exact[0], where_finite(low[0], exact[0]))
    assert_lse(lse, exact[1])


def where_finite(low: Tensor, exact: Tensor) -> Tensor:
    """`low`, but `exact` as rounded where standard attention overflows."""
    return torch.where(low.isfinite(), low, exact.to(low.dtype))


@with_exponents(EXPONENTS, (8, 20), (33, 126))
@paths
def test_outputs_and_lse_are_right(path: str, exponent: int, target: Target) -> None:
    attend, seqlen_q, seqlen_k = PATHS[path]
    logits = all_patterns(seqlen_k, exponent, target)
    q, k, v, scale = with_logits(logits, exponent, seqlen_q, target)
    assert_right(attend, q, k, v, softmax_scale=scale, window_size=(100, 0))
    if target in ON_CPU or exponent == 126:
        assert_right(attend, q, k, v, softmax_scale=scale)


@targets([target for target in TARGETS if target.dtype is torch.float32 or target in KERNELS])
@pytest.mark.parametrize("logit", [-3e38, 3e38])
@paths
def test_largest_numbers_there_are(path: str, logit: float, target: Target) -> None:
    """Base-2 scores of that size would not fit into a float32."""
    attend, seqlen_q, seqlen_k = PATHS[path]
    if target.dtype is torch.float32 and logit < 0:
        logit = -torch.finfo(torch.float32).max
    of_q, scale = (2.0**15, 2.0**100) if target.dtype is torch.float16 else (1.0, 1.0)
    head_dim = 1 if target in ON_CPU else 8
    q = torch.zeros(1, seqlen_q, HEADS, head_dim, device=target.device, dtype=target.dtype)
    k = torch.zeros(1, seqlen_k, HEADS_KV, head_dim, device=target.device, dtype=target.dtype)
    q[..., 0] = of_q
    k[..., 0] = logit / of_q / scale
    v = target.tensor(*k.shape)
    sink = torch.tensor([logit, logit / 2], device=target.device)
    slopes = torch.tensor([0.5, 1.0], device=target.device)
    assert_right(attend, q, k, v, softmax_scale=scale)
    assert_right(attend, q, k, v, softmax_scale=scale, sink=sink)
    k[:, ::2] /= 2
    assert_right(attend, q, k, v, softmax_scale=scale)
    assert_right(attend, q, k, v, softmax_scale=scale, window_size=(0, 0))
    assert_right(attend, q, k, v, softmax_scale=scale, alibi_slopes=slopes)


@with_exponents([0, 19, 24, 40, 100, 126], (24, 126))
@paths
def test_sink_among_large_logits(path: str, exponent: int, target: Target) -> None:
    attend, seqlen_q, seqlen_k = PATHS[path]
    logits = torch.tensor([-1.0, 1.0])[:, None].expand(2, seqlen_k)
    q, k, v, scale = with_logits(logits, exponent, seqlen_q, target)
    every = ((-1.0, 1.0), (2.0, -torch.inf), (0.0, -2.0))
    for sinks in every if target in ON_CPU else every[:2]:
        sink = torch.tensor(sinks, device=target.device) * 2.0**exponent
        assert_right(attend, q, k, v, softmax_scale=scale, sink=sink)


@targets([target for target in TARGETS if target in ON_CPU or target.dtype is torch.bfloat16])
@pytest.mark.parametrize("seqlen_q", [1, 20])
@pytest.mark.parametrize("with_alibi", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1.0, 2.0**99])
@pytest.mark.parametrize("scale", [0.0, 2.0**-100, 1.0])
def test_masked_keys_never_return(
    scale: float, softcap: float, with_alibi: bool, seqlen_q: int, target: Target
) -> None:
    """Visible values are 1 and all others huge, in each order of mask and score function."""
    if scale != 0 and softcap != 0 and not 2.0**-100 <= scale / softcap <= 2.0**100:
        pytest.skip("not in the range of softmax_scale / softcap")
    if target in KERNELS and seqlen_q == 1:
        pytest.skip(SAME_KERNEL)
    options: dict[str, Any] = {"softmax_scale": scale, "softcap": softcap}
    if with_alibi:
        options["alibi_slopes"] = torch.tensor([0.25, 2.0], device=target.device)
    for seqlen_k in (185, 193, 200, 217) if target in ON_CPU else (200,):
        for left, right in ((30, -1), (20, 0), (30, 7)):
            q = torch.zeros(1, seqlen_q, HEADS, HEAD_DIM)
            k = torch.zeros(1, seqlen_k, HEADS_KV, HEAD_DIM)
            v = torch.full_like(k, 1000.0)
            v[:, max(0, seqlen_k - seqlen_q - left) :] = 1
            q, k, v = (x.to(target.device, target.dtype) for x in (q, k, v))
            out = flash_attn_func(q, k, v, window_size=(left, right), **options)
            torch.testing.assert_close(out, torch.ones_like(out))


@targets()
@paths
def test_scale_of_zero_is_uniform(path: str, target: Target) -> None:
    """Whatever the scores are, and rows that a window leaves without keys are still zero."""
    attend, seqlen_q, seqlen_k = PATHS[path]
    q = target.tensor(1, seqlen_q, HEADS, HEAD_DIM)
    k, v = (target.tensor(1, seqlen_k, HEADS_KV, HEAD_DIM) for _ in range(2))
    largest = 2.0**15 if target.dtype is torch.float16 else 2.0**60
    for factor in (1.0, largest):
        big = (q / 8 * factor, k / 8 * factor, v)
        assert_right(attend, *big, softmax_scale=0.0)
        assert_right(attend, *big, softmax_scale=0.0, window_size=(5, 0))


@targets()
@paths
def test_scores_of_minus_infinity_attend_to_nothing(path: str, target: Target) -> None:
    attend, seqlen_q, seqlen_k = PATHS[path]
    q, k, v, _ = with_logits(torch.full((1, seqlen_k), -torch.inf), 0, seqlen_q, target)
    slopes = torch.ones(HEADS, device=target.device)
    for options in ({}, {"causal": True}, {"alibi_slopes": slopes}):
        out, lse = attend(q, k, v, **options)
        assert torch.equal(out, torch.zeros_like(out))
        assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    if target in KERNELS:  # as of standard attention: 0 times the infinity that the keys hold
        assert grads[0][..., 0].isnan().all()
        grads[0][..., 0] = 0
    for grad in grads:
        assert torch.equal(grad, torch.zeros_like(grad))


GRADIENT_PATHS = {"one_query": (1, 217), "tiles": (40, 217), "one_key": (40, 1)}


def lost_share(largest_lse: float, target: Target) -> float:
    """How much of what a row adds to the gradients may be lost in the rounding of its lse."""
    if target in ON_CPU:
        return 0
    return min(1, 2.0**-21 * largest_lse + 2.0**-16)


@with_exponents([6, 8, 10, 20, 33, 63, 126], (8, 20), (12, 126))
@pytest.mark.parametrize("path", GRADIENT_PATHS)
@pytest.mark.parametrize("more", [{}, {"causal": True, "dropout_p": 0.25}, {"sink": True}], ids=str)
def test_gradients_are_right(
    more: dict[str, Any], path: str, exponent: int, target: Target
) -> None:
    """For logits of any size: the error is that of rounding P and dP; on CUDA also that of lse, by
    which P is never too large."""
    if target.dtype is torch.float16 and exponent > 20:
        pytest.skip("gradients are beyond the largest float16")
    if target in KERNELS and path == "one_query":
        pytest.skip(SAME_KERNEL)
    seqlen_q, seqlen_k = GRADIENT_PATHS[path]
    logits = all_patterns(seqlen_k, exponent, target).clamp(-3, 3)
    q, k, v, scale = with_logits(logits, exponent, seqlen_q, target)
    options = {"softmax_scale": scale, **more}
    leaves = [x.requires_grad_() for x in (q, k, v)]
    if "sink" in more:
        sink = torch.tensor([1.0, -3.0], device=target.device) * 2.0**exponent
        options["sink"] = sink.requires_grad_()
        leaves.append(sink)
    rng_state = drawn_rng_state(target.device)
    out = flash_attn_func(q, k, v, **options)
    grad_out = torch.randn_like(out)
    actual = torch.autograd.grad(out, leaves, grad_out)
    exact, low = (
        reference_gradients(q, k, v, options, grad_out, rng_state, dtype)
        for dtype in (torch.float64, target.dtype)
    )
    # dS is rounded like dP; the other operand of its products may be huge.
    eps = torch.finfo(target.dtype).eps
    largest_dp = grad_out.abs().max().item() * v.abs().max().item() * HEAD_DIM
    other = {0: k, 1: q}
    lost = lost_share(3 * 2.0**exponent + 6, target)
    rows = seqlen_q * HEADS // HEADS_KV
    of_all_rows = {
        "q": exact[0].abs().max().item(),
        "k": rows * scale * q.abs().max().item() * largest_dp,
        "v": rows * grad_out.abs().max().item(),
        "sink": len(q) * rows * largest_dp,
    }
    for i, (name, gradient) in enumerate(zip(("q", "k", "v", "sink"), actual, strict=False)):
        slack = 1e-5 + lost * of_all_rows[name]
        if i in other:
            slack += 4 * eps * scale * other[i].abs().max().item() * largest_dp
        if name == "sink":
            slack += max(eps, 1e-6) * exact[i].abs().max().item()
        assert gradient.isfinite().all()
        allowed = where_finite(low[i], exact[i])
        assert_within_rule(f"gradient of {name}", gradient, exact[i], allowed, 3, slack)


def reference_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: dict[str, Any],
    grad_out: Tensor,
    rng_state: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    options = dict(options)
    if "sink" in options:
        options["sink"] = options["sink"].detach().to(dtype).requires_grad_()
        leaves.append(options["sink"])
    if "dropout_p" in options:
        options["rng_state"] = rng_state
    out = attention_reference(*leaves[:3], **options)[0]
    return torch.autograd.grad(out, leaves, grad_out.to(out.dtype))


@with_exponents([6, 20, 30, 63], (6, 14))
def test_gradients_of_lse_are_right(exponent: int, target: Target) -> None:
    """With equal keys, that of a query is one of them times the gradient of its lse."""
    if target.dtype is torch.float16 and exponent > 20:
        pytest.skip("gradients are beyond the largest float16")
    q, k, v, scale = with_logits(-torch.ones(2, 217), exponent, 40, target)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    _, lse = dense(q, k, v, softmax_scale=scale)
    grad_lse = torch.randn_like(lse)
    grad_q, grad_k, grad_v = torch.autograd.grad(lse, leaves, grad_lse)
    grad_lse = grad_lse.double() * scale
    q, k = (x.detach().double() for x in (q, k))
    rtol = 4 * max(torch.finfo(target.dtype).eps, 1e-6) + lost_share(2.0**exponent + 6, target)
    want_q = grad_lse.transpose(1, 2)[..., None] * k[:, :1]
    # Its gradients of scores are 217 numbers that may be subnormal.
    atol = (
        1e-5 + 217 * torch.finfo(target.dtype).smallest_normal * rtol * scale * k.abs().max().item()
    )
    torch.testing.assert_close(grad_q.double(), want_q, rtol=rtol, atol=atol)
    want_k = (grad_lse.sum((1, 2)) / 217)[:, None, None, None] * q[:, :1, :1]
    atol = 1e-5 + rtol * (grad_lse.abs().sum() * q.abs().max() / 217).item()
    torch.testing.assert_close(grad_k.double(), want_k.expand(k.shape), rtol=rtol, atol=atol)
    assert torch.equal(grad_v, torch.zeros_like(grad_v))


@targets()
def test_training_on_large_constants_stays_finite(target: Target) -> None:
    """Equal keys have no gradient; many steps with weights in front of huge activations."""
    torch.manual_seed(0)
    x = torch.full((1, 24, HEADS, HEAD_DIM), 64.0, device=target.device, dtype=target.dtype)
    weights = [torch.randn(HEAD_DIM, HEAD_DIM).to(x).requires_grad_() for _ in range(3)]
    optimizer = torch.optim.SGD(weights, lr=0.01 if target.dtype is not torch.float16 else 1e-4)
    for _ in range(60 if target in ON_CPU else 5):
        optimizer.zero_grad()
        out = flash_attn_func(*(x @ w for w in weights), causal=True, softmax_scale=1.0)
        out.float().square().mean().sqrt().backward()
        optimizer.step()
        assert out.isfinite().all()
        assert all(w.isfinite().all() and w.grad.isfinite().all() for w in weights)


@contextmanager
def flushing_subnormals() -> Iterator[None]:
    """In this thread alone."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def subnormals_survive_in_every_thread() -> bool:
    return bool((torch.full((1 << 20,), 1e-40) * 0.5 != 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_threads_flush_subnormals_as_their_caller_does(dtype: torch.dtype) -> None:
    """The same bits in every run with any number of threads; and only while a call lasts."""
    q, k, v, grad = torch.randn(4, 2, 600, 4, 32, dtype=torch.float64)
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v * torch.finfo(dtype).tiny)]

    def results() -> list[Tensor]:
        out = flash_attn_func(*leaves, causal=True, deterministic=True)
        grads = torch.autograd.grad(out, leaves, grad.to(dtype))
        q, k, v = (x.detach() for x in leaves)
        return [out.detach(), *grads, flash_attn_with_kvcache(q[:, :1], k, v)]

    threads = torch.get_num_threads()
    runs = []
    try:
        torch.set_num_threads(5)
        assert subnormals_survive_in_every_thread()  # starts the threads, which do not flush
        with flushing_subnormals():
            runs += [results() for _ in range(3)]
        assert subnormals_survive_in_every_thread()
        with flushing_subnormals():
            for count in (1, 2, 2):
                torch.set_num_threads(count)
                runs.append(results())
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))  # as bits

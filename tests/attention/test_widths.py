"""Heads whose values are not as wide as their keys, and heads beyond 256 columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import EVERYTHING, FEATURES, LAYOUTS, PACKED_FEATURES, Case, Packed
from support import (
    CPU_FLOAT32,
    TARGETS,
    Target,
    check_dense,
    check_dense_gradients,
    check_varlen,
    check_varlen_gradients,
    num_threads,
    run_varlen,
    targets,
)
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache
from flash_attn2.masks import causal, documents
from flash_attn2.reference import attention_reference

CPU = [target for target in TARGETS if target.backend == "cpu"]
BOTH = [Target("cpu", torch.float32), Target("cpu", torch.bfloat16)]
PAIRS = ((192, 128), (40, 192), (576, 512), (257, 1), (1, 64), (13, 100), (100, 13))
pairs = pytest.mark.parametrize(("head_dim", "head_dim_v"), PAIRS)


@targets(CPU)
@pytest.mark.parametrize("masked", [False, True])
@pairs
def test_pairs(head_dim: int, head_dim_v: int, masked: bool, target: Target) -> None:
    case = Case(head_dim, 1, 77, 210, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    check_dense(*case.qkv(target), causal=masked)
    check_dense_gradients(*case.qkv(target), causal=masked)


@targets([CPU_FLOAT32])
@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES.keys())
def test_features(case: Case, target: Target) -> None:
    case = replace(case, head_dim=40, head_dim_v=24)
    check_dense(*case.qkv(target), **case.all_options(target.device))
    check_dense_gradients(*case.qkv(target), **case.all_options(target.device))


@targets([CPU_FLOAT32])
@pytest.mark.parametrize("case", PACKED_FEATURES.values(), ids=PACKED_FEATURES.keys())
def test_packed_features(case: Packed, target: Target) -> None:
    case = replace(case, head_dim=24, head_dim_v=40)
    arguments = *case.qkv(target), case.packing(target.device)
    check_varlen(*arguments, **case.all_options(target.device))
    check_varlen_gradients(*arguments, **case.all_options(target.device))


@targets(BOTH)
def test_wide_heads_with_everything(target: Target) -> None:
    case = Case(576, 1, 90, 200, 2, 1, head_dim_v=512, alibi="batch", sink=True, options=EVERYTHING)
    check_dense(*case.qkv(target), **case.all_options(target.device))
    check_dense_gradients(*case.qkv(target), **case.all_options(target.device))


@targets(CPU)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (576, 512), (40, 100)])
@pytest.mark.parametrize("seqlen_q", [1, 2, 5, 20])
def test_few_queries(seqlen_q: int, head_dim: int, head_dim_v: int, target: Target) -> None:
    """Alone, of heads together, and of heads apart."""
    for heads in ((2, 1), (4, 4), (16, 1)):
        case = Case(head_dim, 2, seqlen_q, 700, *heads, head_dim_v=head_dim_v)
        q, k, v = case.qkv(target)
        check_dense(q, k, v, causal=True)
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
        check_dense(q, k, v, window_size=(300, 0))


CACHES = {
    "dense": CacheCase(head_dim=64, head_dim_v=40, new="neox", leftpad=True),
    "wide": CacheCase(head_dim=576, head_dim_v=512, heads=(8, 1), new="partial", page_size=16),
    "splits": CacheCase(head_dim=40, head_dim_v=72, new="append", num_splits=3, batch_idx=True),
    "packed": CacheCase(head_dim=48, head_dim_v=100, page_size=48, new="interleaved", packed=True),
    "read_only": CacheCase(head_dim=192, head_dim_v=128, page_size=1, new="none", seqlen_q=65),
    "heads_outside": CacheCase(head_dim=192, head_dim_v=128, layout="heads_outside", heads=(3, 3)),
}


@targets(CPU)
@pytest.mark.parametrize("case", CACHES.values(), ids=CACHES.keys())
def test_caches(case: CacheCase, target: Target) -> None:
    check_kvcache(**case.arguments(target))


@targets(BOTH)
def test_paged_varlen(target: Target) -> None:
    q, k, v = Case(192, 2, 40, 96, head_dim_v=128).qkv(target)
    pages = [x.clone().unflatten(1, (6, 16)).flatten(0, 1) for x in (k, v)]
    table = torch.randperm(12, dtype=torch.int32)
    for x in pages:
        x[table.long()] = x.clone()
    cu_q, cu_k = (torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (40, 96))
    out = _varlen(q.flatten(0, 1), *pages, cu_q, cu_k, block_table=table.view(2, 6), causal=True)
    expected = flash_attn_func(q, k, v, causal=True)
    assert torch.equal(out, expected.flatten(0, 1))


def _varlen(*tensors: Tensor, **options: Any) -> Any:
    from flash_attn2 import flash_attn_varlen_func

    return flash_attn_varlen_func(*tensors, **options)


@targets(BOTH)
def test_masks_and_biases(target: Target) -> None:
    case = Case(100, 1, 300, 300, head_dim_v=36)
    q, k, v = case.qkv(target)
    mask = (causal() & documents(torch.arange(300) // 130)).build(300, 300)
    bias = torch.randn(1, 4, 300, 300, dtype=target.dtype)
    relative = torch.randn(4, 599)
    for function in (check_dense, check_dense_gradients):
        function(q, k, v, block_mask=mask)
        function(q, k, v, bias=bias, relative_bias=relative, causal=True)


@targets([CPU_FLOAT32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: Any, target: Target) -> None:
    q, k, v = map(layout, Case(40, head_dim_v=20).qkv(target))
    check_dense(q, k, v, causal=True)
    check_dense_gradients(q, k, v, causal=True)


@targets(CPU)
@pytest.mark.parametrize("seqlen_q", [3, 130])
def test_columns_beyond_a_width_stay_as_they_are(seqlen_q: int, target: Target) -> None:
    """And are not read: they hold NaN."""
    case = Case(40, 1, seqlen_q, 260, head_dim_v=24)
    q, k, v = case.qkv(target)
    expected = flash_attn_func(q, k, v)
    wider = [torch.nn.functional.pad(x, (3, 5), value=torch.nan) for x in (q, k, v, expected)]
    q, k, v, out = (x[..., 3:-5] for x in wider)
    cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32) for n in (seqlen_q, 260))
    out.fill_(7)
    assert _varlen(q[0], k[0], v[0], cu_q, cu_k, out=out[0]).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)
    assert wider[3][..., :3].isnan().all()
    assert wider[3][..., -5:].isnan().all()


@targets(CPU)
@pytest.mark.parametrize("seqlen_q", [1, 100])
def test_columns_of_values_do_not_know_of_each_other(seqlen_q: int, target: Target) -> None:
    """The bits of the leading ones are those of narrower values."""
    q, k, v = Case(48, 2, seqlen_q, 400, head_dim_v=128).qkv(target)
    whole = flash_attn_func(q, k, v, causal=True)
    for width in (1, 40, 48, 100):
        assert torch.equal(flash_attn_func(q, k, v[..., :width], causal=True), whole[..., :width])


@targets(CPU)
def test_zeros_behind_keys_change_no_score(target: Target) -> None:
    q, k, v = Case(48, 2, 70, 130, head_dim_v=32).qkv(target)
    expected = flash_attn_func(q, k, v, softmax_scale=0.2)
    q, k = (torch.nn.functional.pad(x, (0, 500)) for x in (q, k))
    torch.testing.assert_close(flash_attn_func(q, k, v, softmax_scale=0.2), expected)


@targets(BOTH)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (576, 512)])
def test_sequences_do_not_depend_on_company(head_dim: int, head_dim_v: int, target: Target) -> None:
    case = Packed(head_dim=head_dim, head_dim_v=head_dim_v, options={"causal": True})
    packing = case.packing(target.device)
    q, k, v = case.qkv(target)
    together = run_varlen(q, k, v, packing, **case.options)
    (q_begin, q_end), (k_begin, k_end) = packing[0][1:3].tolist(), packing[1][1:3].tolist()
    alone = flash_attn_func(
        *(q[None, q_begin:q_end], k[None, k_begin:k_end], v[None, k_begin:k_end]), **case.options
    )
    assert torch.equal(together[q_begin:q_end], alone[0])


@targets(BOTH)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (512, 512)])
def test_gradients_are_the_same_in_every_run(
    head_dim: int, head_dim_v: int, target: Target
) -> None:
    q, k, v = Case(head_dim, 1, 300, 420, 2, 1, head_dim_v=head_dim_v).qkv(target)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    grad_out = torch.randn(1, 300, 2, head_dim_v, dtype=target.dtype)

    def gradients(threads: int) -> tuple[Tensor, ...]:
        with num_threads(threads):
            out = flash_attn_func(*leaves, causal=True, deterministic=True)
            return out, *torch.autograd.grad(out, leaves, grad_out)

    expected = gradients(1)
    for threads in (1, 2, 3):
        assert all(map(torch.equal, gradients(threads), expected))


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(5, 3), (3, 7)])
def test_gradcheck(head_dim: int, head_dim_v: int) -> None:
    case = Case(head_dim, 1, 4, 6, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    leaves = [x.requires_grad_() for x in case.qkv(Target("cpu", torch.float64))]

    def attend(*qkv: Tensor) -> Any:  # lse is a float32
        return flash_attn_func(*qkv, causal=True, softcap=2.0)

    assert torch.autograd.gradcheck(attend, leaves)


def test_ops() -> None:
    ops = torch.ops.flash_attn2
    q, k, v = Case(24, 2, 9, 13, head_dim_v=40).qkv(CPU_FLOAT32)
    torch.library.opcheck(ops.forward.default, (q, k, v))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(ops.forward.default, tuple(leaves))
    out, lse, rng_state = ops.forward(q, k, v)
    assert out.shape == (2, 9, 4, 40)
    arguments = torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, rng_state
    torch.library.opcheck(ops.backward.default, arguments)
    arguments = CacheCase(head_dim=16, head_dim_v=24, new="append").arguments(CPU_FLOAT32)
    for x in (arguments["k_cache"], arguments["v_cache"]):
        x.nan_to_num_(0)
    cache = [arguments[name] for name in ("q", "k_cache", "v_cache", "k", "v")]
    nothing = (None, None, False, False)
    lengths = (arguments["cache_seqlens"], None, None, None, None, None, None, None, 3, 0)
    scores = (None, -1, -1, 0.0, None, None)
    torch.library.opcheck(ops.kvcache_append_forward.default, (*cache, *nothing, *lengths, *scores))


def test_compile() -> None:
    q, k, v = Case(24, 2, 9, 13, head_dim_v=40).qkv(CPU_FLOAT32)
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager", dynamic=True)
    for width in (40, 33, 24):
        leaves = [x.detach().requires_grad_() for x in (q, k, v[..., :width])]
        out, expected = (f(*leaves, causal=True) for f in (compiled, flash_attn_func))
        assert torch.equal(out, expected)
        grads = (torch.autograd.grad(x.sin().sum(), leaves) for x in (out, expected))
        for actual, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(actual, wanted)


def test_vmap() -> None:
    q, k, v = (torch.randn(3, *shape) for shape in ((1, 5, 2, 8), (1, 7, 2, 8), (1, 7, 2, 12)))
    expected = torch.stack([flash_attn_func(*x) for x in zip(q, k, v, strict=True)])
    assert torch.equal(torch.vmap(flash_attn_func)(q, k, v), expected)


def test_default_scale_is_of_queries() -> None:
    q, k, v = Case(64, head_dim_v=16).qkv(CPU_FLOAT32)
    assert torch.equal(flash_attn_func(q, k, v), flash_attn_func(q, k, v, softmax_scale=64**-0.5))


def test_given_memory() -> None:
    q, k, v = Case(24, 2, 9, 13, head_dim_v=40).qkv(CPU_FLOAT32)
    lengths = torch.full((2,), 13, dtype=torch.int32)
    out = torch.full((2, 9, 4, 40), torch.nan)
    assert flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, out=out) is out
    exact = attention_reference(*(x.double() for x in (q, k, v)))[0]
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"out must have shape \(2, 9, 4, 40\), got \(2, 9, 4, 24"):
        flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, out=torch.empty_like(q))


BAD = {
    (577, 16): r"head_dim, of q, must be from 1 to 576, got 577",
    (0, 16): r"head_dim, of q, must be from 1 to 576, got 0",
    (16, 513): r"head_dim_v, of v(_cache)?, must be from 1 to 512, got 513",
    (16, 0): r"head_dim_v, of v(_cache)?, must be from 1 to 512, got 0",
}


@pytest.mark.parametrize("widths", BAD, ids=str)
def test_widths_that_no_kernel_takes(widths: tuple[int, int]) -> None:
    head_dim, head_dim_v = widths
    q, k, v = (torch.randn(2, 3, 2, width) for width in (head_dim, head_dim, head_dim_v))
    cu = torch.tensor([0, 3, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match=BAD[widths]):
        flash_attn_func(q, k, v)
    with pytest.raises(ValueError, match=BAD[widths]):
        _varlen(*(x.flatten(0, 1) for x in (q, k, v)), cu, cu)
    with pytest.raises(ValueError, match=BAD[widths]):
        flash_attn_with_kvcache(q, k, v)


def test_values_of_another_shape() -> None:
    q, k = torch.randn(2, 3, 4, 16), torch.randn(2, 5, 2, 16)
    for shape in ((2, 6, 2, 8), (2, 5, 4, 8), (1, 5, 2, 8)):
        with pytest.raises(ValueError, match=r"v must have the shape of k .*\(2, 5, 2, head_dim_v"):
            flash_attn_func(q, k, torch.randn(shape))
    with pytest.raises(ValueError, match=r"v_cache must have the shape of k_cache"):
        flash_attn_with_kvcache(q, k, torch.randn(2, 6, 2, 8))
    new = {"k": torch.randn(2, 1, 2, 16), "v": torch.randn(2, 1, 2, 16), "cache_seqlens": 2}
    with pytest.raises(ValueError, match=r"v must be \(2, seqlen_new, 2, 8\), got shape"):
        flash_attn_with_kvcache(q, k, torch.randn(2, 5, 2, 8), **new)


@targets([Target("sm80-emulated", torch.bfloat16)])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(520, 128), (576, 512)])
def test_cuda_kernels_say_what_is_built(head_dim: int, head_dim_v: int, target: Target) -> None:
    q, k, v = Case(head_dim, 1, 5, 9, head_dim_v=head_dim_v).qkv(target)
    message = (
        "of up to 512 columns, and for keys of up to 576 over a KV cache alone, got head_dim "
        f"{head_dim} and head_dim_v {head_dim_v}"
    )
    with pytest.raises(NotImplementedError, match=message):
        flash_attn_func(q, k, v)
    with pytest.raises(NotImplementedError, match=message):
        flash_attn_func(q.requires_grad_(), k, v)

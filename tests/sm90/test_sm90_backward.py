"""The sm90 backward kernels in the emulator: what they serve, against the float64 reference, and
what each costs beside the least that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import (
    FEATURES,
    PACKED_FEATURES,
    Case,
    heads_outside,
    rows_outside,
    same_for_the_batch,
    slice_of_larger,
)
from support import (
    HALF,
    Target,
    check_dense_gradients,
    check_varlen_gradients,
    cumulative,
    emulator_options,
    targets,
)
from test_sm90_forward import kernels_of_sm80
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends, launch
from flash_attn2._impl.problem import Gradient, Problem
from flash_attn2.reference import Packing

BUCKETS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
# Keys and queries of a tile (csrc/sm90/backward/tiles.h), and keys where heads are wide.
BLOCK_N, BLOCK_M, WIDE_BLOCK_N = 128, 64, 64
TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]
FLOAT16 = TARGETS[:1]

WITHOUT_KEYS = ("all_empty", "no_keys")


def emulator() -> Any:
    return backends.load("sm90-emulated").module


@contextmanager
def backward_of_sm90(expected: bool) -> Iterator[None]:
    """Whether backward passes inside run kernels of sm90, which alone have wgmma."""
    emulator().reset_counters()
    yield
    assert (emulator().counters_by_kernel()["BwdKernel"]["wgmma"] > 0) == expected


def check_gradients_like_sm80(problem: Problem) -> None:
    """Those of sm90's kernels are those of sm80's."""
    out, lse, *_ = launch.forward(problem, over_cache=False)
    gradient = Gradient(torch.randn_like(out), None, problem._replace(out=out, lse=lse))
    with backward_of_sm90(True):
        of_sm90 = launch.backward(gradient)
    with kernels_of_sm80():
        of_sm80 = launch.backward(gradient)
    torch.testing.assert_close(of_sm90[:3], of_sm80[:3], atol=0.02, rtol=0.02)


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_kernel(bucket: tuple[int, int], deterministic: bool, target: Target) -> None:
    """With several CTAs at once, more tiles than a ring holds, and the heads of a group.

    Where the result must be reproducible, any order of summation left to chance is an error.
    """
    width, width_v = bucket
    seqlens = (330, 290) if width <= 128 else (200, 150)
    case = Case(width, 1, *seqlens, num_heads=2, num_heads_kv=1, head_dim_v=width_v)
    sums = "ordered" if deterministic else "free"
    options = f"ctas=3,async=random,seed={width},sums={sums}"
    causal = deterministic == (target.dtype is torch.bfloat16)
    with backward_of_sm90(True), emulator_options(options, target.backend):
        check_dense_gradients(*case.qkv(target), causal=causal, deterministic=deterministic)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str, target: Target) -> None:
    case = FEATURES[name]
    with backward_of_sm90(True):
        check_dense_gradients(*case.qkv(target), **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", PACKED_FEATURES)
def test_packed_features(name: str, target: Target) -> None:
    case = PACKED_FEATURES[name]
    packing = case.packing(target.device)
    if name in WITHOUT_KEYS:
        check_varlen_gradients(*case.qkv(target), packing, **case.all_options(target.device))
        return
    with backward_of_sm90(True):
        check_varlen_gradients(*case.qkv(target), packing, **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize(
    "widths", [(40, 64), (72, 88), (128, 40), (136, 64), (160, 192), (256, 200)], ids=str
)
def test_narrower_heads(widths: tuple[int, int], target: Target) -> None:
    width, width_v = widths
    case = Case(width, 1, 140, 150, num_heads=2, num_heads_kv=1, head_dim_v=width_v)
    with backward_of_sm90(True):
        check_dense_gradients(*case.qkv(target), causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize(
    "layout", [heads_outside, rows_outside, slice_of_larger, same_for_the_batch]
)
def test_layouts(layout: Callable[[Tensor], Tensor], target: Target) -> None:
    q, k, v = map(layout, Case(64, seqlen_q=130, seqlen_k=140).qkv(target))
    with backward_of_sm90(True):
        check_dense_gradients(q, k, v, causal=True)


def gradients(*tensors: Tensor, grad_out: Tensor | None = None, **options: Any) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = flash_attn_func(*leaves, **options)
    incoming = torch.ones_like(out) if grad_out is None else grad_out
    return list(torch.autograd.grad(out, leaves, incoming))


@targets(ONE_DTYPE)
def test_what_comes_in_may_lie_anywhere(target: Target) -> None:
    q, k, v = Case(128, batch=1, seqlen_q=70, seqlen_k=90, num_heads=2).qkv(target)
    grad_out = torch.randn_like(q)
    expected = gradients(q, k, v, grad_out=grad_out, deterministic=True)
    for same in (heads_outside(grad_out), slice_of_larger(grad_out)):
        with backward_of_sm90(True):
            actual = gradients(q, k, v, grad_out=same, deterministic=True)
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one, other)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int], target: Target) -> None:
    batch, seqlen_q, seqlen_k = shape
    q, k, v = Case(128, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k).qkv(target)
    for x, gradient in zip((q, k, v), gradients(q, k, v, causal=True), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [128, 192, 256])
def test_sequences_whose_lengths_differ(width: int, target: Target) -> None:
    """Of which some have fewer blocks of keys, or tiles of queries, than the launch."""
    q, k, v = Case(width, batch=1, seqlen_q=155, seqlen_k=290, num_heads=2).qkv(target)
    packing = Packing(cumulative(15, 0, 140), cumulative(150, 3, 137), None, 140, 150)
    for deterministic in (False, True):
        sums = "ordered" if deterministic else "free"
        schedule = f"ctas=4,async=early,seed=9,sums={sums}"
        with backward_of_sm90(True), emulator_options(schedule, target.backend):
            check_varlen_gradients(
                *(q[0], k[0, :, :1], v[0, :, :1], packing),
                **{"window_size": (60, 5), "deterministic": deterministic},
            )


@targets(ONE_DTYPE)
@pytest.mark.parametrize("width", [128, 256])
def test_keys_that_no_query_sees(width: int, target: Target) -> None:
    """Blocks of them, whose gradients are 0; and rows that see a sink and little else."""
    q, k, v = Case(width, 1, seqlen_q=64, seqlen_k=300, num_heads=2, num_heads_kv=1).qkv(target)
    with backward_of_sm90(True):
        check_dense_gradients(q, k, v, window_size=(30, 0), sink=torch.tensor([1.0, -2.0]))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("options", ["seed=3,async=early", "seed=4,async=late,ctas=4,approx=worst"])
@pytest.mark.parametrize("width", [128, 256])
def test_schedules(width: int, options: str, target: Target) -> None:
    case = Case(width, batch=1, seqlen_q=300, seqlen_k=200, num_heads=2, num_heads_kv=2)
    with emulator_options(options, target.backend):
        check_dense_gradients(*case.qkv(target), causal=True)


@targets(ONE_DTYPE)
def test_scores_of_any_size(target: Target) -> None:
    q, k, v = Case(128, batch=1, num_heads=2, num_heads_kv=1).qkv(target)
    check_dense_gradients(30 * q, 30 * k, v)
    growing = torch.linspace(0, 40, k.shape[1])[:, None, None].to(k.dtype)
    check_dense_gradients(q, k * growing, v, sink=torch.tensor([80.0, -80.0]))


@targets(ONE_DTYPE)
def test_fixed_order_gives_the_same_bits_in_any_batch(target: Target) -> None:
    q, k, v = Case(64, batch=3, seqlen_q=150, seqlen_k=300).qkv(target)
    options = {"causal": True, "deterministic": True}
    together = gradients(q, k, v, **options)
    with emulator_options("seed=8,ctas=3,async=random", target.backend):
        alone = gradients(q[1:2], k[1:2], v[1:2], **options)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[1:2], part)


SECTOR_BYTES = 32
MMA_PRODUCTS = 16 * 8 * 16


def counted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> dict[str, float]:
    """What the backward pass of one call costs."""
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, **options)
    grad_out = torch.randn_like(out)
    emulator().reset_counters()
    torch.autograd.grad(out, leaves, grad_out)
    return dict(emulator().counters())


@targets(FLOAT16)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_cost_is_the_least_possible(
    bucket: tuple[int, int], deterministic: bool, target: Target
) -> None:
    width, width_v = bucket
    block_n = BLOCK_N if width <= 128 else WIDE_BLOCK_N
    heads, seqlen_q, seqlen_k = 2, 3 * BLOCK_M, 2 * block_n
    q = target.tensor(1, seqlen_q, heads, width)
    k, v = target.tensor(1, seqlen_k, 1, width), target.tensor(1, seqlen_k, 1, width_v)
    cost = counted(q, k, v, deterministic=deterministic)
    blocks, rows, sums = seqlen_k // block_n, heads * seqlen_q, 4 * q.numel()
    out_bytes = q.nbytes * width_v // width

    assert cost["mma"] * MMA_PRODUCTS == rows * seqlen_k * (3 * width + 2 * width_v)
    for unit in ("stmatrix", "ldmatrix", "shared_loads", "shared_stores"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit
    # Keys and values once, for all heads of the group; of 96 columns two boxes have 16 in common.
    assert cost["read.k.bytes"] * width == k.nbytes * (112 if width == 96 else width)
    assert cost["read.v.bytes"] == v.nbytes
    # Queries and gradients of the output once for each block of keys.
    assert cost["read.q.bytes"] == blocks * q.nbytes
    assert cost["read.grad_out.bytes"] == (blocks + 1) * out_bytes
    # Gradients once, in whole sectors.
    for name, tensor in {"grad_q": q, "grad_k": k, "grad_v": v}.items():
        assert cost[f"write.{name}.sectors"] * SECTOR_BYTES == tensor.nbytes
    # As of sm80: sums of dQ, and two numbers for each row.
    order = (
        cost["atomic.workspace.bytes"] - blocks * sums,
        cost["write.workspace.bytes"] - sums - 8 * rows,
        cost["read.workspace.bytes"] - sums - blocks * 8 * rows,
    )
    assert max(order) <= (2 * 4 * blocks * rows / 32 if deterministic else 0)
    assert cost["read.workspace.sectors"] * SECTOR_BYTES <= 1.02 * cost["read.workspace.bytes"]
    assert cost["atomic.workspace.sectors"] * SECTOR_BYTES <= (blocks + 0.02) * sums


@targets(FLOAT16)
@pytest.mark.parametrize(
    ("options", "visible_tiles"),
    [
        # Two blocks of 128 keys against tiles of 64 queries.
        ({"causal": True}, 4 + 2),
        ({"window_size": (64, 0)}, 3 + 2),
        ({"window_size": (0, 0)}, 2 + 2),
        ({"window_size": (-1, 64)}, 4 + 3),
    ],
    ids=str,
)
def test_hidden_tiles_are_skipped(
    options: dict[str, Any], visible_tiles: int, target: Target
) -> None:
    q, k, v = (target.tensor(1, 256, 1, 64) for _ in range(3))
    cost = counted(q, k, v, **options)
    assert cost["mma"] * MMA_PRODUCTS == visible_tiles * 5 * BLOCK_N * BLOCK_M * 64
    assert cost["read.q.bytes"] == visible_tiles * BLOCK_M * 64 * 2

"""The sm90 kernels in the emulator: what they serve, against the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import (
    FEATURES,
    PACKED_FEATURES,
    Case,
    Packed,
    heads_outside,
    misaligned_rows,
    rows_outside,
    same_for_all_heads,
    same_for_the_batch,
    slice_of_larger,
)
from support import HALF, Target, check_dense, check_varlen, emulator_options, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends, launch
from flash_attn2._impl.problem import Options, Positions, Problem

BUCKETS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]

NARROWER = (
    (40, 64),
    (72, 88),
    (104, 128),
    (128, 40),
    (100, 100),
    (160, 192),
    (160, 40),
    (256, 200),
)
WITHOUT_KEYS = ("all_empty", "no_keys")


@contextmanager
def launches_of_sm90(expected: bool) -> Iterator[None]:
    """Whether the calls inside run kernels of sm90, which alone have wgmma."""
    module: Any = backends.load("sm90-emulated").module
    module.reset_counters()
    yield
    assert (module.counters()["wgmma"] > 0) == expected


@contextmanager
def kernels_of_sm80() -> Iterator[None]:
    """Calls inside run those, where sm90's would have served."""
    module: Any = backends.load("sm90-emulated").module
    module.choose_family("sm80")
    try:
        yield
    finally:
        module.choose_family("sm90")


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_every_kernel(bucket: tuple[int, int], causal: bool, target: Target) -> None:
    """Masked and full tiles, more of them than a ring holds."""
    width, width_v = bucket
    case = Case(width, 1, 130, 930, num_heads=2, num_heads_kv=1, head_dim_v=width_v)
    with launches_of_sm90(True):
        check_dense(*case.qkv(target), causal=causal)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str, target: Target) -> None:
    case = dataclasses.replace(FEATURES[name], head_dim=128)
    with launches_of_sm90(True):
        check_dense(*case.qkv(target), **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", PACKED_FEATURES)
def test_packed_features(name: str, target: Target) -> None:
    case: Packed = dataclasses.replace(PACKED_FEATURES[name], head_dim=128)
    packing = case.packing(target.device)
    with launches_of_sm90(name not in WITHOUT_KEYS):
        check_varlen(*case.qkv(target), packing, **case.all_options(target.device))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("widths", NARROWER, ids=str)
def test_narrower_heads(widths: tuple[int, int], target: Target) -> None:
    width, width_v = widths
    case = Case(width, 1, 140, 150, num_heads=2, num_heads_kv=1, head_dim_v=width_v)
    with launches_of_sm90(True):
        check_dense(*case.qkv(target), causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize(
    ("layout", "served"),
    [
        (heads_outside, True),
        (rows_outside, True),
        (slice_of_larger, True),
        (misaligned_rows, True),  # copied
        (same_for_the_batch, True),
        (same_for_all_heads, False),  # boxes of copies do not stand still
    ],
)
def test_layouts(layout: Callable[[Tensor], Tensor], served: bool, target: Target) -> None:
    q, k, v = map(layout, Case(128, seqlen_q=130, seqlen_k=140).qkv(target))
    with launches_of_sm90(served):
        check_dense(q, k, v, causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int, int], target: Target) -> None:
    batch, seqlen_q, seqlen_k = shape
    q, k, v = Case(128, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k).qkv(target)
    out, lse = flash_attn_func(q, k, v, causal=True, return_lse=True)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    sink = torch.randn(4)
    _, lse = flash_attn_func(q, k, v, sink=sink, return_lse=True)
    torch.testing.assert_close(lse, sink[:, None].expand(batch, 4, seqlen_q))


@targets(ONE_DTYPE)
def test_scores_of_any_size(target: Target) -> None:
    q, k, v = Case(128, batch=1, seqlen_k=403).qkv(target)
    check_dense(30 * q, 30 * k, v)
    check_dense(3e4 * q, 3e4 * k, v, softmax_scale=1e3)
    growing = torch.linspace(0, 40, 403)[:, None, None].to(k.dtype)  # rescaled in most steps
    check_dense(q, k * growing, v)
    check_dense(q, k * growing.flip(0), v, sink=torch.tensor([80.0, -80.0, 0.0, 3e4]))


@targets(ONE_DTYPE)
def test_more_work_than_multiprocessors(target: Target) -> None:
    """CTAs take one tile after the other: each 132nd, or the next one where lengths differ."""
    check_dense(*Case(128, 35, seqlen_q=20, seqlen_k=30, num_heads_kv=4).qkv(target))
    case = Packed(tuple(range(1, 37)), tuple(range(36, 0, -1)), head_dim=128, num_heads_kv=4)
    with emulator_options("seed=5,ctas=3,async=random", target.backend):
        check_varlen(*case.qkv(target), case.packing(target.device), causal=True)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("options", ["seed=3,async=early", "seed=4,async=late,ctas=4,approx=worst"])
def test_schedules(options: str, target: Target) -> None:
    case = Case(128, batch=1, seqlen_q=300, seqlen_k=700, num_heads=2, num_heads_kv=2)
    with emulator_options(options, target.backend):
        check_dense(*case.qkv(target), causal=True)


@targets(ONE_DTYPE)
def test_a_sequence_gets_the_same_bits_in_any_batch(target: Target) -> None:
    q, k, v = Case(128, batch=3, seqlen_q=150, seqlen_k=400).qkv(target)
    for options in ({}, {"causal": True}):
        together = flash_attn_func(q, k, v, return_lse=True, **options)
        alone = flash_attn_func(q[1:2], k[1:2], v[1:2], return_lse=True, **options)
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[1:2], part)


@targets(ONE_DTYPE)
def test_parts_of_queries_get_the_bits_of_the_whole(target: Target) -> None:
    q, k, v = Case(128, batch=1, seqlen_q=200, seqlen_k=300).qkv(target)
    options = Options(window=(100, 0))
    whole = launch.forward(Problem(q, k, v, options=options), over_cache=False)
    begin = 64  # a tile of two heads
    at = Positions(begin, 0, q.shape[1], k.shape[1])
    part = Problem(q[:, begin:], k, v, options=options, positions=at)
    with launches_of_sm90(True):
        out, lse, *_ = launch.forward(part, over_cache=False)
    assert torch.equal(out, whole[0][:, begin:])
    assert torch.equal(lse, whole[1][..., begin:])

"""The sm90 backward kernels where scores become more than scaled ones: softcap, ALiBi, biases and
dropout, alone and together, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from support import (
    HALF,
    Target,
    check_dense_gradients,
    check_varlen_gradients,
    cumulative,
    drawn_rng_state,
    emulator_options,
    targets,
)
from test_sm90_backward import backward_of_sm90, check_gradients_like_sm80, gradients
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl.problem import Dropout, Options, Positions, Problem
from flash_attn2.reference import Packing, attention_reference, dropout_keep

TARGETS = [Target("sm90-emulated", dtype) for dtype in HALF]
ONE_DTYPE = TARGETS[1:]
# Wider heads are left to sm80.
BUCKETS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192))
NARROW_AND_WIDE = ((64, 64), (192, 128))
LENGTHS = 134, 203

SLOPES = torch.tensor([0.3, 0.1])
OPTIONS: dict[str, dict[str, Any]] = {
    "capped": {"causal": True, "softcap": 4.0, "alibi_slopes": SLOPES, "deterministic": True},
    "dropped": {"dropout_p": 0.2, "window_size": (200, 60)},
}


def drawn_qkv(
    target: Target, *widths: int, lengths: tuple[int, int] = LENGTHS
) -> tuple[Tensor, Tensor, Tensor]:
    width, width_v = widths
    return Case(width, 1, *lengths, num_heads=2, num_heads_kv=1, head_dim_v=width_v).qkv(target)


def drawn_biases(dtype: torch.dtype, lengths: tuple[int, int] = LENGTHS) -> dict[str, Tensor]:
    return {
        "bias": torch.randn(2, *lengths).to(dtype),
        "relative_bias": torch.randn(1, sum(lengths) - 1),
    }


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kernel(name: str, bucket: tuple[int, int], target: Target) -> None:
    """With several CTAs at once, and orders of summation as in the tests of plain kernels."""
    qkv, options = drawn_qkv(target, *bucket), dict(OPTIONS[name])
    if name == "dropped":
        options |= drawn_biases(target.dtype)
    sums = "ordered" if options.get("deterministic") else "free"
    schedule = f"ctas=3,async=random,seed={bucket[0]},sums={sums}"
    with backward_of_sm90(True), emulator_options(schedule, target.backend):
        check_dense_gradients(*qkv, **options)


# Drawn when the test runs, behind its seed.
ALONE: dict[str, Callable[[], dict[str, Any]]] = {
    "softcap": lambda: {"softcap": 1.5, "softmax_scale": 1.0},
    "alibi": lambda: {"alibi_slopes": SLOPES},
    "bias": lambda: {"bias": torch.randn(2, *LENGTHS)},
    "relative_bias": lambda: {"relative_bias": torch.randn(2, sum(LENGTHS) - 1)},
    "dropout": lambda: {"dropout_p": 0.3},
    "scale_zero": lambda: {"softmax_scale": 0.0},
    "softcap_and_dropout": lambda: {"softcap": 2.0, "dropout_p": 0.5, "causal": True},
    "all": lambda: {
        **{"softcap": 5.0, "alibi_slopes": SLOPES, "dropout_p": 0.2, "window_size": (90, 20)},
        **{"sink": torch.tensor([0.5, -1.0]), "deterministic": True},
        **drawn_biases(torch.bfloat16),
    },
}


@targets(ONE_DTYPE)
@pytest.mark.parametrize("widths", NARROW_AND_WIDE, ids=str)
@pytest.mark.parametrize("name", ALONE)
def test_alone_and_together(name: str, widths: tuple[int, int], target: Target) -> None:
    with backward_of_sm90(True):
        check_dense_gradients(*drawn_qkv(target, *widths), **ALONE[name]())


@targets(ONE_DTYPE)
@pytest.mark.parametrize("widths", NARROW_AND_WIDE, ids=str)
def test_sequences_whose_lengths_differ(widths: tuple[int, int], target: Target) -> None:
    q, k, v = drawn_qkv(target, *widths, lengths=(155, 290))
    packing = Packing(cumulative(15, 0, 140), cumulative(150, 3, 137), None, 140, 150)
    options = {"causal": True, "softcap": 3.0, "alibi_slopes": SLOPES, "dropout_p": 0.25}
    with backward_of_sm90(True), emulator_options("ctas=4,async=early,seed=9", target.backend):
        check_varlen_gradients(q[0], k[0], v[0], packing, **options)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1, 1), (67, 131)], ids=str)
def test_biases_end_where_sequences_do(
    lengths: tuple[int, int], dtype: torch.dtype, target: Target
) -> None:
    """Beside NaN, which no entry is, and with one row or column for all."""
    qkv = drawn_qkv(target, 64, 64, lengths=lengths)
    bias = torch.randn(2, *lengths).to(dtype)
    wide = torch.full((2, lengths[0] + 2, lengths[1] + 5), torch.nan, dtype=dtype)
    wide[:, 1:-1, 3:-2] = bias
    with backward_of_sm90(True):
        check_dense_gradients(*qkv, bias=wide[:, 1:-1, 3:-2])
        for row in (bias[:1, :1], bias[:, :, :1]):
            check_dense_gradients(*qkv, bias=row)


@targets(TARGETS)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_dropped_entries_are_those_of_the_reference(
    bucket: tuple[int, int], target: Target
) -> None:
    """Bit for bit. With equal scores and one-hot gradients of the output, dV is which P are kept.
    With one-hot queries, dK is what their dS are: above D / keep_prob only where dP is kept."""
    width, width_v = bucket
    seqlen_q, seqlen_k, drop = width_v, 150, 0.4
    case = Case(width, 1, seqlen_q, seqlen_k, num_heads=2, num_heads_kv=2, head_dim_v=width_v)
    q, k, v = case.qkv(target)
    state = drawn_rng_state("cpu")
    kept = dropout_keep(state, (1, 2, seqlen_q, seqlen_k), drop)[0]

    one_hot = torch.eye(seqlen_q, width_v)[None, :, None].expand(1, -1, 2, -1).to(target.dtype)
    with backward_of_sm90(True):
        _, _, grad_v = gradients(0 * q, k, v, grad_out=one_hot.contiguous(), dropout_p=drop)
    assert torch.equal(grad_v[0, :, :, :seqlen_q].permute(1, 2, 0) != 0, kept)

    q = torch.eye(seqlen_q, width)[None, :, None].expand(1, -1, 2, -1).to(target.dtype)
    grad_out = torch.ones(1, seqlen_q, 2, width_v, dtype=target.dtype)
    drawn_rng_state("cpu")
    with backward_of_sm90(True):
        _, grad_k, _ = gradients(q, 0 * k, torch.ones_like(v), grad_out=grad_out, dropout_p=drop)
    assert torch.equal(grad_k[0, :, :, :seqlen_q].permute(1, 2, 0) > 0, kept)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("begin", [32, 40])
def test_dropout_of_a_part(begin: int, target: Target) -> None:
    """Entries are numbered in the whole, whether or not its blocks of 32 keys are the part's."""
    q, k, v = drawn_qkv(target, 64, 64)
    options = Options(dropout=Dropout(0.3, torch.tensor([17, 2**33 + 5])))
    at = Positions(70, begin, *LENGTHS)
    part = Problem(q[:, 70:], k[:, begin:], v[:, begin:], options=options, positions=at)
    check_gradients_like_sm80(part)


@targets(TARGETS[:1])
def test_small_slopes_of_wide_heads(target: Target) -> None:
    """Weights that one warpgroup hands to another keep their bits where a softcap leaves little."""
    width, seqlen_k, times_cap = 192, 1000, 4.5
    q = (1 + 0.1 * torch.randn(1, 64, 1, width)).to(target.dtype)
    k = (times_cap / width + 0.02 * torch.randn(1, seqlen_k, 1, width)).to(target.dtype)
    v = (4 * torch.randn(1, seqlen_k, 1, width)).to(target.dtype)
    options = {"softcap": 1.0, "softmax_scale": 1.0}

    def gradients_of(call: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = call(*leaves, **options)
        return list(torch.autograd.grad(out.sum(), leaves))

    with backward_of_sm90(True):
        found = gradients_of(flash_attn_func, target.dtype)
    exact = gradients_of(lambda *qkv, **o: attention_reference(*qkv, **o)[0], torch.float64)
    for gradient, right in zip(found[:2], exact[:2], strict=True):
        assert (gradient.double() - right).norm() < 0.01 * right.norm()


@targets(ONE_DTYPE)
@pytest.mark.parametrize("options", ["seed=3,async=early", "seed=4,async=late,ctas=4,approx=worst"])
@pytest.mark.parametrize("widths", NARROW_AND_WIDE, ids=str)
def test_schedules(widths: tuple[int, int], options: str, target: Target) -> None:
    qkv = drawn_qkv(target, *widths, lengths=(300, 200))
    with backward_of_sm90(True), emulator_options(options, target.backend):
        check_dense_gradients(*qkv, causal=True, softcap=3.0, dropout_p=0.2)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("widths", NARROW_AND_WIDE, ids=str)
def test_fixed_order_gives_the_same_bits_in_any_batch(
    widths: tuple[int, int], target: Target
) -> None:
    width, width_v = widths
    q, k, v = Case(width, 3, seqlen_q=150, seqlen_k=200, head_dim_v=width_v).qkv(target)
    options = {"causal": True, "deterministic": True, "softcap": 3.0}
    with backward_of_sm90(True):
        together = gradients(q, k, v, **options)
    with emulator_options("seed=8,ctas=3,async=random", target.backend):
        alone = gradients(q[1:2], k[1:2], v[1:2], **options)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[1:2], part)

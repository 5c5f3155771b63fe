"""`bias` and `relative_bias` of dense calls: against the reference, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import TARGETS as ALL_TARGETS
from support import Target, check_dense, check_dense_gradients, targets
from torch import Tensor

from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from flash_attn2.masks import BlockMask
from flash_attn2.reference import attention_reference

# The emulator runs the rest of its dtypes and head dims in tests/sm80.
CPU_TARGETS = [target for target in ALL_TARGETS if target.backend == "cpu"]
EMULATED = [Target("sm80-emulated", torch.bfloat16)]
TARGETS = CPU_TARGETS + EMULATED
CPU = [target for target in CPU_TARGETS if target.dtype in (torch.float32, torch.bfloat16)]
BATCH, HEADS, HEADS_KV, HEAD_DIM = 2, 4, 2, 32
LENGTHS = (100, 230)


def drawn_qkv(
    target: Target, lengths: tuple[int, int] = LENGTHS, heads_kv: int = HEADS_KV
) -> tuple[Tensor, Tensor, Tensor]:
    q = target.tensor(BATCH, lengths[0], HEADS, HEAD_DIM)
    return q, *(target.tensor(BATCH, lengths[1], heads_kv, HEAD_DIM) for _ in "kv")


def drawn_relative(heads: int = HEADS, lengths: tuple[int, int] = LENGTHS) -> Tensor:
    return torch.randn(heads, sum(lengths) - 1)


# Shapes that broadcast to (batch, heads, seqlen_q, seqlen_k).
SHAPES: list[tuple[int, ...]] = [
    (2, 4, 100, 230),
    (1, 4, 100, 230),
    (2, 1, 100, 230),
    (100, 230),
    (2, 1, 1, 230),
    (4, 1, 230),
    (230,),
    (2, 4, 100, 1),
    (100, 1),
    (4, 1, 1),
    (1,),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (50, 20)},
    "scale": {"softmax_scale": 0.0},
    "softcap": {"softcap": 1.5, "softmax_scale": 1.0},
    "alibi": {"alibi_slopes": True},
    "sink": {"sink": True},
    "dropout": {"dropout_p": 0.3},
    "listed": {"block_mask": True},
    "deterministic": {"deterministic": True},
    "everything": {
        "softcap": 5.0,
        "alibi_slopes": True,
        "sink": True,
        "dropout_p": 0.2,
        "block_mask": True,
    },
}
each_option = pytest.mark.parametrize("name", OPTIONS)


def drawn_options(name: str) -> dict[str, Any]:
    options = dict(OPTIONS[name])
    if "alibi_slopes" in options:
        options["alibi_slopes"] = 0.3 * torch.rand(BATCH, HEADS)
    if "sink" in options:
        options["sink"] = 2 * torch.randn(HEADS)
    if "block_mask" in options:
        options["block_mask"] = BlockMask.from_dense(drawn_pairs())
    return options


def drawn_pairs() -> Tensor:
    """Blocks with none, some and all of their pairs."""
    kind = torch.randint(0, 3, (2, 2, 2, 4)).repeat_interleave(64, 2).repeat_interleave(64, 3)
    kind = kind[:, :, : LENGTHS[0], : LENGTHS[1]]
    return (kind == 2) | ((kind == 1) & (torch.rand(kind.shape) < 0.4))


def dtypes(target: Target, shape: tuple[int, ...]) -> set[torch.dtype]:
    """Of a bias; in the emulator, where time counts, one of them."""
    if target in EMULATED:
        return {target.dtype if SHAPES.index(shape) % 2 else torch.float32}
    return {target.dtype, torch.float32}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@targets(TARGETS)
def test_shapes(shape: tuple[int, ...], target: Target) -> None:
    for dtype in dtypes(target, shape):
        bias = torch.randn(shape).to(dtype)
        check_dense(*drawn_qkv(target), bias=bias)
        check_dense_gradients(*drawn_qkv(target), bias=bias)


@pytest.mark.parametrize("heads", [1, HEADS])
@targets(TARGETS)
def test_relative(heads: int, target: Target) -> None:
    for heads_kv in (1, HEADS):
        qkv = drawn_qkv(target, heads_kv=heads_kv)
        check_dense(*qkv, relative_bias=drawn_relative(heads))
        check_dense_gradients(*qkv, relative_bias=drawn_relative(heads))


@targets(TARGETS)
@each_option
def test_options(name: str, target: Target) -> None:
    options = drawn_options(name)
    bias, relative = torch.randn(1, HEADS, *LENGTHS).to(target.dtype), drawn_relative()
    biases = {"bias": bias, "relative_bias": relative}
    check_dense_gradients(*drawn_qkv(target), **options, **biases)
    options.pop("deterministic", None)
    check_dense(*drawn_qkv(target), **options, **biases)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 300), (300, 1), (5, 700), (64, 64), (260, 515)])
@targets(CPU + EMULATED)
def test_lengths(lengths: tuple[int, int], target: Target) -> None:
    biases = {
        "bias": torch.randn(BATCH, 1, *lengths).to(target.dtype),
        "relative_bias": drawn_relative(HEADS, lengths),
    }
    check_dense(*drawn_qkv(target, lengths), **biases)
    check_dense_gradients(*drawn_qkv(target, lengths), **biases)


@pytest.mark.parametrize("name", ["plain", "causal", "window", "scale", "softcap", "alibi", "sink"])
@pytest.mark.parametrize("rows", [1, 5])
@targets(CPU_TARGETS)
def test_a_handful_of_queries(rows: int, name: str, target: Target) -> None:
    """Which have a kernel of their own, for one group of heads and for several."""
    lengths, options = (rows, 1300), drawn_options(name)
    for dtype, heads_kv in zip((target.dtype, torch.float32), (1, HEADS), strict=True):
        bias = torch.randn(BATCH, 1, *lengths).to(dtype)
        bias[..., 200:330] = -torch.inf
        check_dense(*drawn_qkv(target, lengths, heads_kv), bias=bias, **options)
    bias = torch.randn(HEADS, lengths[1], rows).to(target.dtype).mT
    both = {"bias": bias, "relative_bias": drawn_relative(HEADS, lengths)}
    check_dense(*drawn_qkv(target, lengths), **both, **options)


@targets(CPU)
def test_a_handful_of_queries_that_see_nothing(target: Target) -> None:
    q, k, v = drawn_qkv(target, (3, 500))
    bias = torch.zeros(3, 500)
    bias[1] = -torch.inf
    out, lse = flash_attn_func(q, k, v, bias=bias, return_lse=True)
    assert (out[:, 1] == 0).all()
    assert (lse[..., 1] == -torch.inf).all()
    assert torch.equal(out[:, ::2], flash_attn_func(q, k, v, bias=torch.zeros(1))[:, ::2])


@pytest.mark.parametrize("head_dim", [8, 40, 64, 128, 256])
@targets(CPU)
def test_head_dims(head_dim: int, target: Target) -> None:
    q = target.tensor(1, 70, 2, head_dim)
    k, v = (target.tensor(1, 200, 1, head_dim) for _ in "kv")
    biases = {"bias": torch.randn(200), "relative_bias": torch.randn(2, 269)}
    check_dense(q, k, v, **biases)
    check_dense_gradients(q, k, v, **biases)


def test_float32_biases_of_float64_queries() -> None:
    target = Target("cpu", torch.float64)
    qkv, bias, relative = drawn_qkv(target), torch.randn(HEADS, *LENGTHS), drawn_relative()
    out = flash_attn_func(*qkv, bias=bias, relative_bias=relative)
    expected, *_ = attention_reference(*qkv, bias=bias, relative_bias=relative)
    torch.testing.assert_close(out, expected)
    out = flash_attn_func(*qkv, bias=bias.double(), relative_bias=relative.double())
    torch.testing.assert_close(out, expected)


def test_reference_means_what_the_formula_says() -> None:
    """An oracle of its own: a loop over the pairs of one head, by hand."""
    q, k, v = (torch.randn(1, n, 1, 8, dtype=torch.float64) for n in (5, 7, 7))
    bias, relative = torch.randn(1, 1, 5, 7), torch.randn(1, 11)
    out, *_ = attention_reference(q, k, v, bias=bias, relative_bias=relative)
    for i in range(5):
        s = [
            float(q[0, i, 0] @ k[0, j, 0]) * 8**-0.5
            + float(bias[0, 0, i, j])
            + float(relative[0, j - i + 4])
            for j in range(7)
        ]
        weights = torch.tensor(s, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(out[0, i, 0], weights @ v[0, :, 0])


# -inf.


@targets(TARGETS)
def test_minus_infinity_hides_keys(target: Target) -> None:
    """As a mask does; a row of nothing else gives 0 and lse -inf, and gradients of 0."""
    bias = torch.randn(BATCH, HEADS, *LENGTHS)
    bias = bias.masked_fill(torch.rand(bias.shape) < 0.5, -torch.inf)
    bias[:, 1, 10:90] = -torch.inf
    bias[0, 2] = -torch.inf
    check_dense(*drawn_qkv(target), bias=bias)
    check_dense_gradients(*drawn_qkv(target), bias=bias)
    leaves = [x.requires_grad_() for x in drawn_qkv(target)]
    out, lse = flash_attn_func(*leaves, bias=bias, return_lse=True)
    assert (out[:, 10:90, 1] == 0).all()
    assert (lse[:, 1, 10:90] == -torch.inf).all()
    assert lse[:, 3].isfinite().all()
    grad_q, _, _ = torch.autograd.grad((out, lse), leaves, (out.detach(), torch.ones_like(lse)))
    assert (grad_q[:, 10:90, 1] == 0).all()
    assert (grad_q[0, :, 2] == 0).all()


@targets(TARGETS)
def test_lowest_finite_values(target: Target) -> None:
    """As eager masks have them: a row of nothing else has equal shares."""
    lowest = torch.finfo(target.dtype).min
    bias = torch.zeros(100, 230).to(target.dtype)
    bias[:, 50:] = lowest
    bias[3] = lowest
    q, k, v = drawn_qkv(target)
    out = flash_attn_func(q, k, v, bias=bias)
    expected = flash_attn_func(q, k[:, :50], v[:, :50])
    rows = torch.arange(100) != 3
    torch.testing.assert_close(out[:, rows], expected[:, rows])
    if target.dtype in (torch.float32, torch.bfloat16):  # else scores still count beside it
        mean = v.double().mean(1).repeat_interleave(2, 1).to(v.dtype)
        torch.testing.assert_close(out[:, 3], mean, atol=1e-2, rtol=1e-2)


def test_large_biases() -> None:
    """Where lse is too coarse for probabilities to be formed from it."""
    target = Target("cpu", torch.float32)
    for size in (1e3, 1e5):
        bias = size * torch.randn(HEADS, *LENGTHS)
        check_dense(*drawn_qkv(target), bias=bias)
        check_dense_gradients(*drawn_qkv(target), bias=bias)


# Memory.


def layouts(bias: Tensor) -> list[Tensor]:
    """The same values in other strides."""
    return [
        bias.transpose(-1, -2).contiguous().transpose(-1, -2),
        bias.repeat_interleave(2, -1)[..., ::2],
        torch.nn.functional.pad(bias, (3, 2, 1, 1))[..., 1:-1, 3:-2],
        bias.transpose(0, 1).contiguous().transpose(0, 1),
    ]


@targets(TARGETS)
def test_any_strides(target: Target) -> None:
    q, k, v = drawn_qkv(target)
    bias = torch.randn(BATCH, HEADS, *LENGTHS).to(target.dtype)
    expected = flash_attn_func(q, k, v, bias=bias)
    for other in layouts(bias):
        assert not other.is_contiguous()
        assert torch.equal(flash_attn_func(q, k, v, bias=other), expected)
    row = bias[:1, :1, :1]
    out = flash_attn_func(q, k, v, bias=row.expand(BATCH, HEADS, *LENGTHS))
    assert torch.equal(out, flash_attn_func(q, k, v, bias=row))
    relative = drawn_relative()
    expected = flash_attn_func(q, k, v, relative_bias=relative)
    for other in (
        relative.T.contiguous().T,
        relative.repeat_interleave(3, -1)[:, 1::3],
        torch.cat([relative, relative], 1)[:, : relative.shape[1]],
    ):
        assert torch.equal(flash_attn_func(q, k, v, relative_bias=other), expected)


@targets(CPU + EMULATED)
def test_values_around_do_not_count(target: Target) -> None:
    q, k, v = drawn_qkv(target)
    bias = torch.randn(BATCH, HEADS, *LENGTHS).to(target.dtype)
    around = torch.full((BATCH, HEADS, 102, 262), torch.nan, dtype=target.dtype)
    around[..., 1:-1, 16:-16] = bias
    out = flash_attn_func(q, k, v, bias=around[..., 1:-1, 16:-16])
    assert torch.equal(out, flash_attn_func(q, k, v, bias=bias))


@pytest.mark.parametrize("sizes", [(0, 100, 230), (2, 0, 230), (2, 100, 0)])
def test_empty_tensors(sizes: tuple[int, int, int]) -> None:
    batch, seqlen_q, seqlen_k = sizes
    q = torch.randn(batch, seqlen_q, 4, 8)
    k = torch.randn(batch, seqlen_k, 2, 8)
    diagonals = seqlen_q + seqlen_k - 1 if seqlen_q and seqlen_k else 0
    biases = {
        "bias": torch.randn(batch, 4, seqlen_q, seqlen_k),
        "relative_bias": torch.randn(4, diagonals),
    }
    out, lse = flash_attn_func(q, k, k, **biases, return_lse=True)  # type: ignore[misc]
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


# What they go with.


@targets(CPU)
def test_packed_tensors(target: Target) -> None:
    q, k, v = drawn_qkv(target)
    biases: Any = {"bias": torch.randn(HEADS, *LENGTHS), "relative_bias": drawn_relative()}
    out = flash_attn_kvpacked_func(q, torch.stack([k, v], 2), **biases)
    assert torch.equal(out, flash_attn_func(q, k, v, **biases))
    qkv = target.tensor(2, 100, 3, HEADS, HEAD_DIM)
    biases = {"bias": torch.randn(100, 100), "relative_bias": torch.randn(1, 199)}
    out = flash_attn_qkvpacked_func(qkv, **biases)
    assert torch.equal(out, flash_attn_func(*qkv.unbind(2), **biases))


@targets(CPU)
def test_probs(target: Target) -> None:
    q, k, v = drawn_qkv(target)
    bias = torch.zeros(BATCH, 1, 1, LENGTHS[1])
    bias[0, ..., 100:] = -torch.inf
    probs = attention_probs(q, k, bias=bias)
    assert torch.equal(probs > 0, (bias == 0).expand(probs.shape))
    _, _, probs = flash_attn_func(q, k, v, 0.3, bias=bias, return_attn_probs=True)
    assert torch.equal(probs != 0, (bias == 0).expand(probs.shape))
    assert (probs < 0).any()


@targets(CPU + EMULATED)
def test_queries_that_do_not_count(target: Target) -> None:
    """Entries are those of rows of q, however many of them count."""
    q, k, v = drawn_qkv(target)
    biases: Any = {"bias": torch.randn(HEADS, *LENGTHS), "relative_bias": drawn_relative()}
    out = flash_attn_func(q, k, v, seqused_q=torch.tensor([100, 30], dtype=torch.int32), **biases)
    expected = flash_attn_func(q, k, v, **biases)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1, :30], expected[1, :30])
    assert (out[1, 30:] == 0).all()


@targets(CPU + EMULATED)
def test_the_rest_of_the_batch_does_not_matter(target: Target) -> None:
    q, k, v = drawn_qkv(target)
    bias, relative = torch.randn(BATCH, 1, *LENGTHS), drawn_relative()
    out = flash_attn_func(q, k, v, bias=bias, relative_bias=relative)
    for b in range(BATCH):
        one = slice(b, b + 1)
        alone = flash_attn_func(q[one], k[one], v[one], bias=bias[one], relative_bias=relative)
        assert torch.equal(alone, out[one])

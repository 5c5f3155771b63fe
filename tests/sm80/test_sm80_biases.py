"""The sm80 kernels with biases in the emulator: every variant that is built, how gradients are
divided, and the order of their sums.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BUCKETS
from support import (
    Target,
    check_dense,
    check_dense_gradients,
    emulator_options,
)
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.masks import BlockMask

NAME = "sm80-emulated"
TARGET = Target(NAME, torch.bfloat16)
LENGTHS = 134, 150
DEVICES = [*(("sm80", d) for d in BUCKETS), *(("sm86", d) for d in BUCKETS if d > 96)]

pytestmark = pytest.mark.usefixtures("emulated")


def drawn_mask(seqlen_q: int, seqlen_k: int) -> BlockMask:
    """Blocks of all kinds."""
    size = -(-seqlen_q // 64), -(-seqlen_k // 64)
    kinds = torch.randint(0, 3, size).repeat_interleave(64, 0).repeat_interleave(64, 1)
    kinds = kinds[:seqlen_q, :seqlen_k]
    return BlockMask.from_dense((kinds == 2) | ((kinds == 1) & (torch.rand(kinds.shape) < 0.4)))


def drawn_qkv(
    target: Target, head_dim: int = 32, batch: int = 1, lengths: tuple[int, int] = LENGTHS
) -> tuple[Tensor, Tensor, Tensor]:
    q = target.tensor(batch, lengths[0], 2, head_dim)
    return q, *(target.tensor(batch, lengths[1], 1, head_dim) for _ in "kv")


OPTIONS: dict[str, dict[str, Any]] = {
    "modified": {"causal": True, "alibi_slopes": torch.tensor([0.3, 0.1]), "deterministic": True},
    "dropout": {"dropout_p": 0.2, "softcap": 4.0, "window_size": (40, 60)},
    "listed": {"softcap": 4.0, "block_mask": True},
    "listed dropout": {"dropout_p": 0.2, "sink": torch.tensor([1.0, -2.0]), "block_mask": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("device", "head_dim"), DEVICES)
def test_every_kernel(device: str, head_dim: int, name: str) -> None:
    """With several CTAs at once, under a random schedule and random copy completion."""
    target = Target(NAME, torch.float16 if name == "modified" else torch.bfloat16)
    options = dict(OPTIONS[name])
    if "block_mask" in options:
        options["block_mask"] = drawn_mask(*LENGTHS)
    options["bias"] = torch.randn(2, *LENGTHS)
    if name in ("dropout", "listed"):
        options["bias"] = options["bias"].bfloat16()
    options["relative_bias"] = torch.randn(1, sum(LENGTHS) - 1)
    qkv = drawn_qkv(target, head_dim)
    sums = "ordered" if options.get("deterministic") else "free"
    with emulator_options(f"device={device},ctas=3,async=random,seed={head_dim},sums={sums}"):
        check_dense_gradients(*qkv, **options)
        options.pop("deterministic", None)
        check_dense(*qkv, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_lie_anyhow(dtype: torch.dtype) -> None:
    """In pairs that can be read at once, in pairs that cannot, or apart: with the same result."""
    lengths = 70, 130
    qkv = drawn_qkv(TARGET, 64, lengths=lengths)
    bias = torch.randn(2, *lengths).to(dtype)
    expected = flash_attn_func(*qkv, bias=bias)
    check_dense(*qkv, bias=bias)
    views = [bias.mT.contiguous().mT]
    for row, begin, step in ((131, 0, 1), (132, 1, 1), (134, 2, 1), (260, 0, 2)):
        rows = torch.full((2, lengths[0], row), torch.nan, dtype=dtype)
        views.append(rows[..., begin : begin + step * lengths[1] : step].copy_(bias))
    for view in views:
        assert torch.equal(flash_attn_func(*qkv, bias=view), expected)


# How gradients are divided.


def gradients(qkv: tuple[Tensor, ...], biases: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """Of the biases, through out and lse."""
    leaves: dict[str, Any] = {name: x.detach().requires_grad_() for name, x in biases.items()}
    attend: Any = flash_attn_func
    out, lse = attend(*qkv, return_lse=True, **leaves, **options)
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (out, lse)]
    return list(torch.autograd.grad((out, lse), list(leaves.values()), grads))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of the native module, by name of the entry point."""
    recorded: list[dict[str, Any]] = []
    run = backends.Backend.run

    def record(self: Any, entry_point: Any, problem: Any, device: torch.device) -> None:
        recorded.append({entry_point.__name__: problem})
        run(self, entry_point, problem, device)

    monkeypatch.setattr(backends.Backend, "run", record)
    return recorded


def last(calls: list[dict[str, Any]], name: str) -> Any:
    return next(call[name] for call in reversed(calls) if name in call)


def test_few_queries_are_not_split(calls: list[dict[str, Any]]) -> None:
    """With a bias: of 1,000 keys, which would be split otherwise."""
    lengths = 1, 1000
    module = backends.load(NAME).module
    for softcap in (0.0, 3.0):
        flash_attn_func(*drawn_qkv(TARGET, lengths=lengths), softcap=softcap)
        assert "split, few rows" in module.plan_forward(last(calls, "forward"), 0)
    flash_attn_func(*drawn_qkv(TARGET, lengths=lengths), bias=torch.randn(1000))
    plan = module.plan_forward(last(calls, "forward"), 0)
    assert plan.startswith("bfloat16 head_dim<=32 modified:")
    assert "split" not in plan


SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "tiles": ((3, 2, 134, 150), "bias: 54 units, 1 splits, grid 54"),
    "broadcast": ((134, 150), "bias: 9 units, 1 splits, grid 9"),
    "keys": ((1, 1, 1, 150), "bias: 3 units, 4 splits, grid 12"),
    "queries": ((1, 1, 134, 1), "bias: 3 units, 4 splits, grid 12"),
    "one": ((1,), "bias: 1 units, 13 splits, grid 13"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_plan(name: str, calls: list[dict[str, Any]]) -> None:
    shape, text = SHAPES[name]
    gradients(drawn_qkv(TARGET, batch=3), {"bias": torch.randn(shape)})
    module = backends.load(NAME).module
    plan = module.plan_bias_backward(last(calls, "bias_backward"), 0)
    assert plan.startswith(f"gradients of biases bfloat16: {text}; no relative_bias; workspace ")


def test_plan_by_diagonals(calls: list[dict[str, Any]]) -> None:
    qkv = drawn_qkv(TARGET, batch=3)
    for heads, text in ((2, "10 units, 2 splits, grid 20"), (1, "5 units, 4 splits, grid 20")):
        gradients(qkv, {"relative_bias": torch.randn(heads, 283)})
        plan = backends.load(NAME).module.plan_bias_backward(last(calls, "bias_backward"), 0)
        assert f"no bias; relative_bias: {text};" in plan


@pytest.mark.parametrize("shape", [(3, 1, 134, 150), (1, 2, 1, 150), (134, 1), (1,)], ids=str)
def test_the_same_bits_in_any_schedule(shape: tuple[int, ...]) -> None:
    qkv = drawn_qkv(TARGET, batch=3)
    biases = {"bias": torch.randn(shape), "relative_bias": torch.randn(1, 283)}
    found = []
    for seed in (1, 2, 3):
        torch.manual_seed(5)
        with emulator_options(f"ctas={seed},async=random,seed={seed},sums=ordered"):
            found.append(gradients(qkv, biases, dropout_p=0.1, deterministic=True))
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


@pytest.mark.parametrize("lengths", [(1, 1), (1, 300), (300, 1), (64, 64), (65, 129), (190, 40)])
def test_diagonals_of_all_lengths(lengths: tuple[int, int]) -> None:
    """Bands that begin on either side, and ragged ends of both."""
    qkv = drawn_qkv(TARGET, lengths=lengths)
    check_dense_gradients(*qkv, relative_bias=torch.randn(2, sum(lengths) - 1))


def counted(qkv: tuple[Tensor, ...], bias: Tensor, **options: Any) -> float:
    """MMA instructions of the gradient of the bias."""
    module = backends.load(NAME).module
    module.reset_counters()
    gradients(qkv, {"bias": bias}, **options)
    kernels = module.counters_by_kernel()
    (mma,) = (x["mma"] for name, x in kernels.items() if "BiasBwdKernel" in name)
    assert isinstance(mma, float)
    return mma


def test_only_visible_tiles_are_multiplied() -> None:
    lengths = 256, 256
    qkv = drawn_qkv(TARGET, 32, lengths=lengths)
    tile = 2 * 64 * 64 * 64 / (16 * 8 * 16)  # S and dP, of 64 columns of the head dim or fewer
    blocks = torch.rand(4, 4) < 0.5
    mask = BlockMask.from_dense(blocks.repeat_interleave(64, 0).repeat_interleave(64, 1))
    for shape in ((2, 256, 256), (256,)):
        bias = torch.randn(shape)
        assert counted(qkv, bias) == 2 * 16 * tile
        assert counted(qkv, bias, causal=True) == 2 * 10 * tile
        assert counted(qkv, bias, block_mask=mask) == 2 * int(blocks.sum()) * tile


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": "bfloat16"}, "bias in bfloat16 for q in float16"),
        ({"dtype": "float64"}, "bias in float64 for q in float16"),
    ],
)
def test_native_module_refuses(
    changes: dict[str, Any], text: str, calls: list[dict[str, Any]]
) -> None:
    target = Target(NAME, torch.float16)
    gradients(drawn_qkv(target), {"bias": torch.randn(LENGTHS)})
    module = backends.load(NAME).module
    for name in ("forward", "backward", "bias_backward"):
        if not any(name in call for call in calls):
            continue
        problem = last(calls, name)
        of_scores = problem.get("forward", problem)["score_mod"]
        of_scores["bias"] |= changes
        with pytest.raises(RuntimeError, match=text):
            getattr(module, name)(problem, 0, None)

"""Gradients of heads of more than 256 columns in the emulator: kernels whose warps share the
products that scores are."""

from __future__ import annotations

import pytest
import torch
from cases import Case, Packed
from support import (
    Target,
    check_dense_gradients,
    check_varlen_gradients,
    emulator_options,
)
from test_sm80_backward import counted
from test_sm80_block_mask import OPTIONS, drawn_mask
from test_sm80_kernels import MMA_FLOP, SECTOR_BYTES, VARIANTS
from test_sm80_widths import DEVICES, NAME, TARGET, assert_no_conflicts, options_of
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func

pytestmark = pytest.mark.usefixtures("emulated")


@DEVICES
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel(device: str, variant: str, deterministic: bool) -> None:
    """With several CTAs at once, under a random schedule and random copy completion. Where the
    result must be reproducible, any order of sums left to chance is an error."""
    target = Target(NAME, torch.bfloat16 if deterministic else torch.float16)
    qkv = Case(512, 1, 45, 70, num_heads=2, num_heads_kv=1).qkv(target)
    options = options_of(variant) | {"deterministic": deterministic}
    sums = "ordered" if deterministic else "free"
    with emulator_options(f"device={device},ctas=3,async=random,seed=5,sums={sums}"):
        check_dense_gradients(*qkv, **options)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_listed_kernel(name: str, deterministic: bool) -> None:
    """A CTA has half of the keys of a mask's block."""
    target = Target(NAME, torch.float16 if deterministic else torch.bfloat16)
    qkv = Case(512, 1, 134, 150, num_heads=2, num_heads_kv=1).qkv(target)
    options = OPTIONS[name] | {"block_mask": drawn_mask(134, 150, 2)}
    sums = "ordered" if deterministic else "free"
    with emulator_options(f"device=sm80,ctas=3,async=random,seed=6,sums={sums}"):
        check_dense_gradients(*qkv, **options, deterministic=deterministic)


@DEVICES
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(320, 264), (72, 496), (504, 8)])
def test_widths(device: str, head_dim: int, head_dim_v: int) -> None:
    case = Case(head_dim, 1, 40, 50, num_heads=2, num_heads_kv=1, head_dim_v=head_dim_v)
    with emulator_options(f"device={device}"):
        check_dense_gradients(*case.qkv(TARGET), causal=True)


@pytest.mark.parametrize("heads", [(8, 4), (16, 1)], ids=str)
@DEVICES
def test_groups_of_gemma(device: str, heads: tuple[int, int]) -> None:
    """With sequences of several lengths, in a window and in all that they have."""
    case = Packed((33, 0, 5), (33, 7, 40), head_dim=512, num_heads=heads[0], num_heads_kv=heads[1])
    with emulator_options(f"device={device}"):
        for options in ({"causal": True}, {"window_size": (20, 0)}):
            check_varlen_gradients(*case.qkv(TARGET), case.packing("cpu"), **options)


@DEVICES
def test_gradients_of_biases(device: str) -> None:
    q, k, v = Case(512, 1, 40, 50, num_heads=2, num_heads_kv=1).qkv(TARGET)
    bias, relative = torch.randn(1, 2, 40, 50), torch.randn(2, 89)
    with emulator_options(f"device={device}"):
        check_dense_gradients(q, k, v, bias=bias, relative_bias=relative, dropout_p=0.2)


@DEVICES
def test_deterministic_gradients_are_the_same_in_every_run(device: str) -> None:
    q, k, v = Case(512, 1, 70, 80, 2, 1).qkv(TARGET)
    grad_out = TARGET.tensor(1, 70, 2, 512)
    found = []
    for seed in (1, 2):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with emulator_options(f"device={device},ctas={seed + 1},async=random,seed={seed}"):
            out = flash_attn_func(*leaves, causal=True, deterministic=True)
            found.append(torch.autograd.grad(out, leaves, grad_out))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_gradients_do_not_depend_on_company() -> None:
    """Of the second of three packed sequences."""
    lengths, ends = (9, 41, 70), torch.tensor([0, 9, 50, 120], dtype=torch.int32)
    tensors = [TARGET.tensor(sum(lengths), heads, 512) for heads in (2, 1, 1, 2)]

    def results(rows: slice, ends: Tensor, longest: int) -> list[Tensor]:
        *leaves, grad_out = (x[rows].clone() for x in tensors)
        for x in leaves:
            x.requires_grad_()
        out = flash_attn_varlen_func(
            *leaves, ends, ends, longest, longest, causal=True, deterministic=True
        )
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    together = results(slice(None), ends, 70)
    alone = results(slice(9, 50), torch.tensor([0, 41], dtype=torch.int32), 41)
    assert all(torch.equal(x[9:50], y) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize(("device", "block"), [("sm80", 32), ("sm86", 16)])
def test_cost_is_the_least_possible(device: str, block: int) -> None:
    """Each product once, though twins have the same scores; a tile is as many keys as queries."""
    seqlen, heads = 64, 2
    q, k, v = Case(512, 1, seqlen, seqlen, heads, 1).qkv(TARGET)
    with emulator_options(f"device={device}"):
        cost = counted(q, k, v)
    assert cost["mma"] * MMA_FLOP == 5 * heads * seqlen * seqlen * 512
    assert_no_conflicts(cost)
    assert cost["read.k.sectors"] * SECTOR_BYTES == k.nbytes
    assert cost["read.v.sectors"] * SECTOR_BYTES == v.nbytes
    blocks = seqlen / block
    assert cost["read.q.bytes"] == blocks * q.nbytes
    assert cost["read.grad_out.bytes"] == (blocks + 1) * q.nbytes
    for name, x in {"grad_q": q, "grad_k": k, "grad_v": v}.items():
        assert cost[f"write.{name}.sectors"] * SECTOR_BYTES == x.nbytes


def test_transforms_of_torch_func() -> None:
    q, k, v = Case(512, 1, 5, 9).qkv(TARGET)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(flash_attn_func(*leaves).float().sum(), leaves[0])[0]
    found = torch.func.grad(lambda q: flash_attn_func(q, k, v).float().sum())(q)
    assert torch.equal(found, expected)

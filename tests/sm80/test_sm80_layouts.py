"""Tensors in any layout reach the CUDA kernels, in the emulator, as rows that these can read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cases import LAYOUTS
from support import cpu_tensors_on, require_backend
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import launch

Layout = Callable[[Tensor], Tensor]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def head_dim_outside(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def odd_address(x: Tensor) -> Tensor:
    memory = x.new_full((x.numel() + 1,), torch.nan)
    return memory[1:].view(x.shape).copy_(x)


def odd_strides_of_single_rows(x: Tensor) -> Tensor:
    """Dimensions of size 1 may have any stride, which nothing that looks at contiguity sees."""
    strides = [3 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


def overlapping_rows(x: Tensor) -> Tensor:
    return x.flatten()[: x.shape[-1] + 64].repeat(2).as_strided(x.shape, (5, 3, 1, 1))


ODD_LAYOUTS = (
    *LAYOUTS,
    channels_last,
    head_dim_outside,
    odd_address,
    odd_strides_of_single_rows,
    overlapping_rows,
)
SHAPES = ((2, 9, 3, 20), (1, 20, 2, 20), (1, 1, 1, 1), (3, 1, 2, 8), (1, 6, 4, 16), (2, 5, 1, 33))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_what_is_made_readable_is_so(layout: Layout, shape: tuple[int, ...], aligned: bool) -> None:
    x = layout(torch.randn(shape).bfloat16().repeat(1, 1, 1, 1))
    backend: Any = SimpleNamespace(aligned=aligned)
    y = launch.readable(x, backend)
    padding = -x.shape[-1] % 8 if aligned else 0
    assert torch.equal(y, F.pad(x.contiguous(), (0, padding)))
    assert y.stride(-1) == 1
    if aligned:
        assert y.shape[-1] % 8 == 0
        assert y.data_ptr() % 16 == 0
        assert all(stride % 8 == 0 for stride in y.stride()[:-1])
    assert launch.readable(y, backend) is y


def dense(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = flash_attn_func(*leaves, causal=True, deterministic=True)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out)


def varlen(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach()[0].requires_grad_() for x in (q, k, v)]
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    out = flash_attn_varlen_func(*leaves, cu, cu, 5, 5, deterministic=True)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out[0])


@pytest.mark.parametrize("head_dim", [20, 24])
@pytest.mark.parametrize("call", [dense, varlen])
@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_results_do_not_depend_on_the_layout(layout: Layout, call: Any, head_dim: int) -> None:
    require_backend("sm80-emulated")
    shape = (1 if call is varlen else 2, 9, 2, head_dim)
    tensors = [layout(torch.randn(shape).bfloat16()) for _ in range(4)]
    with cpu_tensors_on("sm80-emulated"):
        expected = call(*(x.clone(memory_format=torch.contiguous_format) for x in tensors))
        assert all(map(torch.equal, call(*tensors), expected))


@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_new_keys_and_rotary_tables_may_have_any_layout(layout: Layout) -> None:
    require_backend("sm80-emulated")
    q, k, v = (layout(torch.randn(2, 5, 2, 24).bfloat16()) for _ in range(3))
    tables = torch.randn(2, 16, 8).bfloat16()
    every_second = [x.repeat_interleave(2, -1)[:, ::2] for x in tables]
    results = []
    for queries, keys, values, (cos, sin) in (
        (q, k, v, every_second),
        (*(x.clone(memory_format=torch.contiguous_format) for x in (q, k, v)), tables),
    ):
        cache = torch.zeros(2, 2, 16, 2, 24, dtype=torch.bfloat16)
        with cpu_tensors_on("sm80-emulated"):
            out = flash_attn_with_kvcache(
                queries, *cache, keys, values, cos, sin, cache_seqlens=7, causal=True
            )
        results.append((out, cache))
    assert all(map(torch.equal, *results))

"""What patterns refuse: by name, with what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flash_attn2 import masks

ids = torch.tensor
TRUE = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: masks.window(-2, 0), ValueError, "left must be at least -1"),
        (lambda: masks.window(0, 1.5), TypeError, "right must be an int"),
        (lambda: masks.window(True, 0), TypeError, "left must be an int"),
        (lambda: masks.prefix(-1), ValueError, "n must not be negative, got -1"),
        (lambda: masks.prefix([]), ValueError, "n must have a number for each"),
        (lambda: masks.prefix([1, "2"]), TypeError, "n must be an int"),
        (lambda: masks.prefix(ids([1.0])), TypeError, "n must be of integers"),
        (lambda: masks.prefix(ids([[1]])), TypeError, "n must be an int"),
        (lambda: masks.global_tokens(-1), ValueError, "tokens must not be negative"),
        (lambda: masks.global_tokens(ids([1])), TypeError, r"tokens must be torch\.bool"),
        (lambda: masks.global_tokens(TRUE[None]), ValueError, "tokens must have shape"),
        (lambda: masks.random_blocks(-1, seed=0), ValueError, "per_row must be from 0"),
        (lambda: masks.random_blocks(1, seed=-1), ValueError, "seed must be from 0"),
        (lambda: masks.random_blocks(1, seed=2**64), ValueError, "seed must be from 0"),
        (lambda: masks.random_blocks(1, seed=0, heads=0), ValueError, "heads must be at least 1"),
        (lambda: masks.random_blocks(1, seed=0, block=32), ValueError, "block must be a multiple"),
        (lambda: masks.random_blocks(1, seed=0, block=0), ValueError, "block must be a multiple"),
        (lambda: masks.documents(), TypeError, "either ids or cu_seqlens"),
        (lambda: masks.documents(ids([1]), cu_seqlens=ids([0])), TypeError, "either ids"),
        (lambda: masks.documents([1]), TypeError, r"ids must be a torch\.Tensor"),
        (lambda: masks.documents(ids([1.0])), TypeError, "ids must be of integers"),
        (lambda: masks.documents(ids([[[1]]])), ValueError, "ids must have shape"),
        (lambda: masks.documents(cu_seqlens=ids([1, 2])), ValueError, "begin with 0"),
        (lambda: masks.documents(cu_seqlens=ids([0, 2, 1])), ValueError, "not decrease"),
        (lambda: masks.documents(cu_seqlens=ids(0)), ValueError, "cu_seqlens must have shape"),
        (lambda: masks.documents(cu_seqlens=ids([0, 2**31])), ValueError, "at most 536870911"),
        (lambda: masks.blocks(ids([[1]])), TypeError, r"mask must be torch\.bool"),
        (lambda: masks.blocks(TRUE), ValueError, "mask must have shape"),
        (lambda: masks.blocks(TRUE[None], 100), ValueError, "block must be a multiple of 64"),
        (lambda: masks.blocks(TRUE[None], (64, 1)), ValueError, "block must be a multiple of 64"),
        (lambda: masks.dense([[True]]), TypeError, r"mask must be a torch\.Tensor"),
        (lambda: masks.dense(TRUE.float()), TypeError, r"mask must be torch\.bool"),
        (lambda: masks.dense(TRUE.view(1, 1, 1, 1, 1)), ValueError, "mask must broadcast"),
        (lambda: masks.dense(TRUE.to("meta")), ValueError, "mask must have values"),
        (lambda: masks.function(3), TypeError, "mask_mod must be a function, got int"),
    ],
)
def test_arguments(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("pattern", "sizes", "text"),
    [
        (masks.causal(), {"seqlen_q": -1}, "seqlen_q must be from 0"),
        (masks.causal(), {"seqlen_k": 2**29}, "seqlen_k must be from 0"),
        (masks.causal(), {"batch": 0}, "batch must be from 1"),
        (masks.causal(), {"heads": -1}, "heads must be from 1"),
        (masks.prefix([1, 2]), {}, "batch must be 2, as the pattern has it, got 1"),
        (masks.prefix([1, 2]), {"batch": 3}, "batch must be 2"),
        (masks.causal() & ~masks.prefix([1, 2]), {}, "batch must be 2"),
        (masks.random_blocks(1, seed=0, heads=4), {"heads": 2}, "heads must be 4"),
        (masks.global_tokens(TRUE), {}, "seqlen_k must be 1, as global_tokens has it, got 70"),
        (masks.documents(ids([0, 1])), {}, "seqlen_k must be 2, as documents has it, got 70"),
        (masks.documents(cu_seqlens=ids([0, 71])), {}, "seqlen_k must be at least 71"),
        (masks.blocks(TRUE[None]), {}, "blocks must have 2 rows and 2 columns"),
        (masks.dense(TRUE.expand(3)), {}, "dense must have a mask of"),
        (
            masks.prefix([1, 2]) & masks.prefix([1, 2, 3]),
            {"batch": 3},
            "batch must be 2, as the pattern has it, got 3",
        ),
    ],
    ids=str,
)
def test_sizes(pattern: masks.Pattern, sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        pattern.build(**({"seqlen_q": 70} | sizes))


def test_types_of_sizes() -> None:
    for name in ("seqlen_q", "seqlen_k", "batch", "heads"):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            masks.causal().build(**({"seqlen_q": 3} | {name: 1.5}))


def mods(result: Any) -> masks.Pattern:
    return masks.function(lambda b, h, q, k: result)


def test_functions_that_return_something_else() -> None:
    with pytest.raises(TypeError, match="mask_mod must return a bool tensor, got bool"):
        mods(True).build(3)
    with pytest.raises(TypeError, match=r"mask_mod must return a bool tensor, got torch\.float"):
        mods(torch.ones(())).build(3)
    with pytest.raises(ValueError, match=r"mask_mod must return what broadcasts to \(1, 64, 64\)"):
        mods(TRUE.expand(3, 3)).build(3)


def test_errors_of_functions_come_through() -> None:
    def fails(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        raise ZeroDivisionError("of the function")

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="of the function"):
            (masks.causal() & masks.function(fails)).build(1000)
    assert masks.causal().build(3).density == pytest.approx(2 / 3)


def test_values_are_needed() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="a mask is made of values"):
        masks.causal().build(3)

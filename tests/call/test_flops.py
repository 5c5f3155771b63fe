"""What FlopCounterMode counts: PyTorch's convention, in which masks count as full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functions import problem
from support import cumulative, lengths
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache


def counted(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    flops: int = counter.get_total_flops()
    return flops


# Multiply-adds of one product of matrices: pairs of query and key times heads times head_dim.
PRODUCTS = {
    "dense": 2 * 3 * 6 * 4 * 5,
    "kvpacked": 2 * 3 * 6 * 4 * 5,
    "qkvpacked": 2 * 4 * 4 * 2 * 5,
    "varlen": (3 * 4 + 0 * 2 + 5 * 6) * 4 * 5,
    "varlen_kvpacked": (3 * 4 + 0 * 2 + 5 * 6) * 4 * 5,
    "varlen_qkvpacked": (3 * 3 + 0 + 5 * 5) * 2 * 5,
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_forward_and_backward(form: str) -> None:
    attend, leaves = problem(form)
    options = {"causal": True, "window_size": (1, 0), "dropout_p": 0.5}
    one = 2 * PRODUCTS[form]
    assert counted(lambda: attend(*leaves)) == 2 * one
    assert counted(lambda: attend(*leaves, **options).sum().backward()) == 7 * one
    for sink in (None, torch.zeros(leaves[0].shape[-2])):
        loss = attend(*leaves, sink=sink).sum()
        assert counted(loss.backward) == 5 * one


def test_as_pytorch_counts_its_own() -> None:
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    q = torch.randn(2, 7, 3, 16, requires_grad=True)
    heads_first = q.transpose(1, 2).shape
    assert counted(lambda: flash_attn_func(q, q, q)) == sdpa_flop_count(*[heads_first] * 3)
    loss = flash_attn_func(q, q, q).sum()
    assert counted(loss.backward) == sdpa_backward_flop_count(*[heads_first] * 4)


def test_every_op_is_counted() -> None:
    names = {x.name for x in torch._C._jit_get_all_schemas() if x.name.startswith("flash_attn2::")}
    assert len(names) >= 7
    without = names - {"flash_attn2::kvcache_no_gradient"}  # which computes nothing
    assert all(getattr(torch.ops.flash_attn2, x.split("::")[1]) in flop_registry for x in without)


def test_queries_that_count() -> None:
    q = torch.randn(2, 7, 4, 16, requires_grad=True)
    loss = flash_attn_func(q, q, q, seqused_q=lengths(3, 5)).sum()
    pairs = 7 * (3 + 5)
    assert counted(lambda: flash_attn_func(q, q, q, seqused_q=lengths(3, 5))) == 4 * pairs * 64
    assert counted(loss.backward) == 10 * pairs * 64
    rows, cu = torch.randn(9, 4, 16, requires_grad=True), cumulative(3, 6)

    def attend() -> Any:
        return flash_attn_varlen_func(rows, rows, rows, cu, cu, 6, 6, seqused_q=lengths(2, 0))

    loss = attend().sum()
    assert counted(attend) == 4 * (2 * 3) * 64
    assert counted(loss.backward) == 10 * (2 * 3) * 64


def test_packed_queries_over_pages() -> None:
    q, (k, v) = torch.randn(9, 4, 16), torch.randn(2, 5, 16, 2, 16)
    table = torch.tensor([[0, 2], [4, 1]], dtype=torch.int32)
    cu_q, cu_k = cumulative(3, 6), cumulative(20, 7)

    def attend() -> Any:
        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, 6, 20, block_table=table)

    assert counted(attend) == 4 * (3 * 20 + 6 * 7) * 64


def test_keys_that_count() -> None:
    q = torch.randn(9, 4, 16)
    cu = cumulative(3, 6)

    def attend(**options: Any) -> Tensor:
        return flash_attn_varlen_func(q, q, q, cu, cu, 6, 6, **options)

    assert counted(lambda: attend(seqused_k=lengths(1, 2))) == 4 * (3 * 1 + 6 * 2) * 4 * 16


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_lengths_that_cannot_be_read(device: str) -> None:
    """Every sequence counts as the longest."""
    q, cu = torch.randn(9, 4, 16), cumulative(3, 6)

    def attend(q: Tensor, cu: Tensor) -> Tensor:
        return flash_attn_varlen_func(q, q, q, cu, cu, 6, 6)

    if device == "meta":
        assert counted(lambda: attend(q.to("meta"), cu.to("meta"))) == 4 * (2 * 6 * 6) * 4 * 16
        return
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        q, cu = mode.from_tensor(q), mode.from_tensor(cu)
        assert counted(lambda: attend(q, cu)) == 4 * (2 * 6 * 6) * 4 * 16


CACHE_CALLS: dict[str, tuple[dict[str, Any], int]] = {
    "whole": ({}, 2 * 3 * 32),
    "int": ({"cache_seqlens": 5}, 2 * 3 * 5),
    "lengths": ({"cache_seqlens": lengths(5, 7)}, 3 * (5 + 7)),
    "append": ({"cache_seqlens": lengths(5, 7), "new": True}, 3 * (8 + 10)),
    "leftpad": ({"cache_seqlens": lengths(5, 7), "cache_leftpad": lengths(1, 2)}, 3 * (4 + 5)),
    "pages": ({"cache_seqlens": lengths(40, 7), "pages": True}, 3 * (40 + 7)),
    "all_pages": ({"pages": True}, 2 * 3 * 64),
    "packed": ({"cache_seqlens": lengths(5, 7), "packed": True}, 2 * 5 + 4 * 7),
}


@pytest.mark.parametrize("call", CACHE_CALLS)
def test_cache(call: str) -> None:
    options, pairs = CACHE_CALLS[call]
    options = dict(options)
    q, (k, v) = torch.randn(2, 3, 4, 16), torch.randn(2, 2, 32, 2, 16)
    if options.pop("new", False):
        options["k"], options["v"] = torch.randn(2, 2, 3, 2, 16)
    if options.pop("pages", False):
        k, v = torch.randn(2, 4, 32, 2, 16)
        options["block_table"] = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
    if options.pop("packed", False):
        q = q.flatten(0, 1)
        options["cu_seqlens_q"] = cumulative(2, 4)
    assert counted(lambda: flash_attn_with_kvcache(q, k, v, **options)) == 4 * pairs * 4 * 16

"""Loops over nothing: no keys, no queries, no sequences. Everything is written all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import EVERYTHING
from support import ONE_DTYPE, Target, cumulative, lengths, run_varlen, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.reference import Packing, attention_reference, varlen_attention_reference

DENSE = {  # batch, seqlen_q, seqlen_k
    "no_keys": (2, 5, 0),
    "no_queries": (2, 0, 5),
    "no_rows": (2, 0, 0),
    "no_batch": (0, 5, 7),
    "nothing": (0, 0, 0),
}
VARLEN: dict[str, tuple[int, int, Packing]] = {  # total_q, total_k
    "no_keys": (5, 0, Packing(cumulative(2, 3), cumulative(0, 0), None, 3, 0)),
    "no_queries": (0, 5, Packing(cumulative(0, 0), cumulative(2, 3), None, 0, 3)),
    "no_rows": (0, 0, Packing(cumulative(0, 0), cumulative(0, 0), None, 0, 0)),
    "no_sequences": (0, 0, Packing(cumulative(), cumulative(), None, 0, 0)),
    "rows_of_no_sequence": (5, 7, Packing(cumulative(), cumulative(), None, 3, 4)),
    "rows_of_empty_sequences": (5, 7, Packing(cumulative(0, 0), cumulative(0, 0), None, 3, 4)),
    "no_queries_of_some": (9, 7, Packing(cumulative(0, 4, 0), cumulative(2, 0, 5), None, 4, 5)),
    "no_keys_that_count": (
        5,
        7,
        Packing(cumulative(2, 3), cumulative(3, 4), lengths(0, 0), 3, 4),
    ),
    "bounds_beyond": (5, 0, Packing(cumulative(2, 3), cumulative(0, 0), None, 100, 100)),
}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "everything": EVERYTHING}
each_option = pytest.mark.parametrize("options", OPTIONS)
on_each = targets([*ONE_DTYPE, Target("cpu", torch.float32)])


def compare(attend: Any, refer: Any, shapes: list[tuple[int, ...]], target: Target) -> None:
    """Out, lse and all gradients are those of the reference: what nothing reaches is 0."""
    leaves = [target.tensor(*shape).requires_grad_() for shape in shapes]
    leaves.append(torch.randn(leaves[0].shape[-2], requires_grad=True))
    results = []
    for function, dtype in ((attend, target.dtype), (refer, torch.float64)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in leaves[:3]]
        inputs.append(leaves[3].detach().clone().requires_grad_())
        out, lse = function(*inputs)
        torch.manual_seed(11)
        seeds = [torch.randn(x.shape).to(x.dtype) for x in (out, lse)]
        grads = torch.autograd.grad((out, lse), inputs, seeds, allow_unused=True)
        zeros = [
            torch.zeros_like(x) if grad is None else grad
            for x, grad in zip(inputs, grads, strict=True)
        ]
        results.append([out, lse, *zeros])
    for ours, exact in zip(*results, strict=True):
        tolerance = 1e-5 if target.dtype is torch.float32 else 3e-2
        torch.testing.assert_close(ours.double(), exact.double(), atol=tolerance, rtol=tolerance)


@on_each
@each_option
@pytest.mark.parametrize("case", DENSE)
@pytest.mark.parametrize("sink", [False, True])
def test_dense(case: str, options: str, sink: bool, target: Target) -> None:
    batch, seqlen_q, seqlen_k = DENSE[case]
    chosen = OPTIONS[options]

    def attend(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Any:
        more = {"sink": logits} if sink else {}
        return flash_attn_func(q, k, v, **chosen, **more, return_lse=True)

    def refer(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Any:
        more = {"sink": logits} if sink else {}
        return attention_reference(q, k, v, **chosen, **more, rng_state=lengths(1, 2).long())[:2]

    keys = (batch, seqlen_k, 2, 24)
    compare(attend, refer, [(batch, seqlen_q, 4, 24), keys, keys], target)


@on_each
@each_option
@pytest.mark.parametrize("case", VARLEN)
@pytest.mark.parametrize("sink", [False, True])
def test_varlen(case: str, options: str, sink: bool, target: Target) -> None:
    total_q, total_k, packing = VARLEN[case]
    chosen = OPTIONS[options]

    def attend(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Any:
        more = {"sink": logits} if sink else {}
        return run_varlen(q, k, v, packing, **chosen, **more, return_lse=True)

    def refer(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> Any:
        more = {"sink": logits} if sink else {}
        state = lengths(1, 2).long()
        return varlen_attention_reference(q, k, v, packing, **chosen, **more, rng_state=state)[:2]

    keys = (total_k, 2, 24)
    compare(attend, refer, [(total_q, 4, 24), keys, keys], target)

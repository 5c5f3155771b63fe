"""Largest error over a KV cache, on a sample of sequences and heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flash_attn2.bench.accuracy import Errors, evenly, max_error
from flash_attn2.bench.decode.contenders import DecodeProblem
from flash_attn2.reference import attention_reference

_HEADS = 4
_SEQUENCES = 4


def measure(problem: DecodeProblem, outputs: Mapping[str, Tensor]) -> Errors:
    """Compares `outputs`, each (batch, num_heads, head_dim), with attention in float64."""
    case = problem.case
    heads, sequences = evenly(case.num_heads, _HEADS), evenly(case.batch, _SEQUENCES)
    kv_heads = [head // case.group_size for head in heads]
    errors = {name: {"out": 0.0} for name in outputs}
    low_error = 0.0
    for index in sequences:
        q = problem.q[index][:, heads]
        k, v = (x[:, kv_heads] for x in problem.sequence(index))
        exact, low = (_attend(q, k, v, dtype) for dtype in (torch.float64, q.dtype))
        low_error = max(low_error, max_error(low, exact))
        for name, output in outputs.items():
            error = max_error(output[index, heads], exact)
            errors[name]["out"] = max(errors[name]["out"], error)
    share = len(heads) * len(sequences) / (case.num_heads * case.batch)
    return Errors(errors, {"out": low_error}, share)


def _attend(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The result (heads, head_dim) of the only query of one sequence."""
    out, *_ = attention_reference(q[None].to(dtype), k[None].to(dtype), v[None].to(dtype))
    return out[0, 0]

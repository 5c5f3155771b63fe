"""Largest error with a block mask, on a sample of rows: the first, middle and last ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flash_attn2.bench.accuracy import Errors, max_error
from flash_attn2.bench.sparse.contenders import SparseCall, SparseProblem

_SCORES = 2**22  # entries of the float64 score matrices


def measure(problem: SparseProblem, calls: Mapping[str, SparseCall]) -> Errors:
    """Compares results, or the gradients of sampled rows, with attention in float64."""
    rows = sample(problem)
    exact, low = (_reference(problem, rows, dtype) for dtype in (torch.float64, problem.q.dtype))
    errors = {}
    for name, call in calls.items():
        found = _found(problem, rows, call)
        errors[name] = {what: max_error(found[what], exact[what]) for what in exact}
    low_errors = {what: max_error(low[what], exact[what]) for what in exact}
    return Errors(errors, low_errors, len(rows) / problem.case.seqlen)


def sample(problem: SparseProblem) -> Tensor:
    """The rows that are checked."""
    case = problem.case
    count = max(_SCORES // (case.seqlen * case.num_heads), 3)
    rows = torch.arange(case.seqlen)
    if count < case.seqlen:
        part = count // 3
        middle = (case.seqlen - part) // 2
        rows = torch.cat([rows[:part], rows[middle : middle + part], rows[-part:]])
    return rows.to(problem.q.device)


def _visible(problem: SparseProblem, rows: Tensor) -> Tensor:
    """bool (rows, keys), by the other wording of the mask."""
    cols = torch.arange(problem.case.seqlen, device=rows.device)
    none = rows.new_zeros(())
    return problem.sparsity.mask_mod(none, none, rows[:, None], cols[None])


def _reference(problem: SparseProblem, rows: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    q = problem.q[0, rows].to(dtype)
    k, v = problem.k[0].to(dtype), problem.v[0].to(dtype)
    gradients = problem.grad_out is not None
    q, k, v = (x.transpose(0, 1).detach().requires_grad_(gradients) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    probs = scores.masked_fill(~_visible(problem, rows), -torch.inf).softmax(-1)
    # A row that sees nothing is 0.
    out = probs.nan_to_num(nan=0.0) @ v
    if problem.grad_out is None:
        return {"out": out.transpose(0, 1)}
    grad_out = problem.grad_out[0, rows].to(dtype).transpose(0, 1)
    grads = torch.autograd.grad(out, (q, k, v), grad_out)
    return _named([x.transpose(0, 1) for x in grads])


def _found(problem: SparseProblem, rows: Tensor, call: SparseCall) -> dict[str, Tensor]:
    if problem.grad_out is None:
        return {"out": call.result()[0, rows]}
    grad_out = torch.zeros_like(problem.grad_out)
    grad_out[:, rows] = problem.grad_out[:, rows]
    grad_q, grad_k, grad_v = call.gradients(grad_out)
    return _named([grad_q[0, rows], grad_k[0], grad_v[0]])


def _named(grads: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))

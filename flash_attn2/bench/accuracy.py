"""Largest error of each contender against attention computed in float64.

The float64 reference is O(seqlen²), so large cases are checked on a sample: a few heads, a few
sequences, and of each the first, middle and last rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn2._impl.launch import draw_rng_state
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import Call, Problem
from flash_attn2.bench.modes import gradients
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome
from flash_attn2.reference import attention_reference

_SCORES = 2**23  # entries of the float64 score matrices, per case
_HEADS = 4
_SEQUENCES = 8
_FACTORS = {"out": 2, "grad_q": 3, "grad_k": 3, "grad_v": 3}
_ABSOLUTE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Block:
    """Rows [row_begin, row_end) of one sequence, which begins at `offset` of the batch."""

    sequence: int
    offset: int
    row_begin: int
    row_end: int

    @property
    def rows(self) -> slice:
        return slice(self.offset + self.row_begin, self.offset + self.row_end)


@dataclass(frozen=True)
class Errors:
    """Maximal absolute errors of tensors: "out", or "grad_q", "grad_k" and "grad_v".

    `low` are those of the plain formula at the inputs' own dtype.
    """

    contenders: Mapping[str, Mapping[str, float]]
    low: Mapping[str, float]
    checked: float  # share of the result's rows and heads that was compared

    @staticmethod
    def of(outcome: Outcome) -> Errors:
        """Those of a line of a record, where `record` put them."""
        return Errors(
            outcome["errors"], outcome["errors_of_plain_formula"], outcome["share_checked"]
        )

    def record(self) -> Outcome:
        return {
            "errors": self.contenders,
            "errors_of_plain_formula": self.low,
            "share_checked": self.checked,
        }

    def largest(self, contender: str) -> float | None:
        """Over all tensors; None if the contender's numbers cannot be compared."""
        return max(self.contenders[contender].values()) if contender in self.contenders else None

    def within_tolerance(self, contender: str) -> bool:
        """The project's rule: twice the error of the plain formula (gradients thrice) plus 1e-5."""
        return all(
            error <= _FACTORS[name] * self.low[name] + _ABSOLUTE_TOLERANCE
            for name, error in self.contenders[contender].items()
        )


def sample(case: Case) -> tuple[list[int], list[Block]]:
    """The query heads and the row blocks to check."""
    if case.dropout_p:
        return list(range(case.num_heads)), [Block(0, 0, 0, case.total)]
    heads = evenly(case.num_heads, _HEADS)
    sequences = evenly(len(case.seqlens), _SEQUENCES)
    blocks = []
    for sequence in sequences:
        seqlen = case.seqlens[sequence]
        offset = sum(case.seqlens[:sequence])
        rows = max(_SCORES // (len(heads) * len(sequences) * seqlen), 1)
        if rows >= seqlen:
            blocks.append(Block(sequence, offset, 0, seqlen))
            continue
        part = max(rows // 3, 1)
        for begin in (0, (seqlen - part) // 2, seqlen - part):
            blocks.append(Block(sequence, offset, begin, begin + part))
    return heads, blocks


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, the first and the last among them."""
    limit = min(count, limit)
    return sorted({round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)})


def measure(problem: Problem, outputs: Mapping[str, Tensor]) -> Errors:
    """Compares `outputs`, each (total, num_heads, head_dim_v), with the float64 reference."""
    heads, blocks = sample(problem.case)
    errors = {name: {"out": 0.0} for name in outputs}
    low_error = 0.0
    for block in blocks:
        exact, low = (
            _attend(problem.case, *_inputs(problem, heads, block, dtype))
            for dtype in (torch.float64, problem.q.dtype)
        )
        low_error = max(low_error, max_error(low, exact))
        for name, output in outputs.items():
            error = max_error(output[block.rows][:, heads], exact)
            errors[name]["out"] = max(errors[name]["out"], error)
    return Errors(errors, {"out": low_error}, _share(problem.case, heads, blocks))


def measure_gradients(problem: Problem, calls: Mapping[str, Call]) -> Errors:
    """Compares the gradients of `calls` with those of the float64 reference.

    Only the sampled rows of the result get a gradient other than zero: then theirs are all that
    the reference needs, and the gradients of all others must be zero. With dropout nothing is
    sampled and only flash_attn2 is compared, whose mask is known.
    """
    case = problem.case
    assert problem.grad_out is not None
    heads, blocks = sample(case)
    grad_out = torch.zeros_like(problem.grad_out)
    for block in blocks:
        grad_out[block.rows, heads] = problem.grad_out[block.rows, heads]
    rng_state = None
    if case.dropout_p:
        calls = {FLASH_ATTN2: calls[FLASH_ATTN2]}
        torch.manual_seed(0)
        rng_state = draw_rng_state(problem.q.device)
        torch.manual_seed(0)  # the call is going to draw the same
    exact, low = (
        _reference_gradients(problem, heads, blocks, grad_out, rng_state, dtype)
        for dtype in (torch.float64, problem.q.dtype)
    )
    errors = {}
    for contender, call in calls.items():
        found = gradients(call, grad_out)
        errors[contender] = {
            name: max_error(found[name][:, _heads_of(name, case, heads)], exact[name])
            for name in exact
        }
    low_errors = {name: max_error(low[name], exact[name]) for name in exact}
    return Errors(errors, low_errors, _share(case, heads, blocks))


def _share(case: Case, heads: list[int], blocks: list[Block]) -> float:
    compared = len(heads) * sum(block.row_end - block.row_begin for block in blocks)
    return compared / (case.num_heads * case.total)


def _heads_of(gradient: str, case: Case, heads: list[int]) -> list[int]:
    """Those of the tensor that the query heads `heads` read."""
    return heads if gradient == "grad_q" else sorted({head // case.group_size for head in heads})


def _inputs(
    problem: Problem, heads: list[int], block: Block, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """q (rows, heads, head_dim) of a block, and k and v (keys, heads, their width) for it."""
    case = problem.case
    # The mask is aligned to the last key, so causal rows may be cut out with their keys.
    seqlen = block.row_end if case.causal else case.seqlens[block.sequence]
    keys = slice(block.offset, block.offset + seqlen)
    kv_heads = [head // case.group_size for head in heads]
    return (
        problem.q[block.rows][:, heads].to(dtype),
        problem.k[keys][:, kv_heads].to(dtype),
        problem.v[keys][:, kv_heads].to(dtype),
    )


def _attend(case: Case, q: Tensor, k: Tensor, v: Tensor, rng_state: Tensor | None = None) -> Tensor:
    out, *_ = attention_reference(
        q[None],
        k[None],
        v[None],
        case.dropout_p,
        causal=case.causal,
        window_size=case.window_size,
        softcap=case.softcap,
        rng_state=rng_state,
    )
    return out[0]


def _reference_gradients(
    problem: Problem,
    heads: list[int],
    blocks: list[Block],
    grad_out: Tensor,
    rng_state: Tensor | None,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Gradients of the sampled heads, computed in `dtype` block by block, summed in float64."""
    case = problem.case
    kv_heads = _heads_of("grad_k", case, heads)
    read_by = torch.tensor([kv_heads.index(head // case.group_size) for head in heads])
    read_by = read_by.to(problem.q.device)

    def zeros(num_heads: int, width: int) -> Tensor:
        return problem.q.new_zeros(case.total, num_heads, width, dtype=torch.float64)

    keys, values = case.widths
    grad_q, grad_k = zeros(len(heads), keys), zeros(len(kv_heads), keys)
    grad_v = zeros(len(kv_heads), values)
    for block in blocks:
        q, k, v = (x.requires_grad_() for x in _inputs(problem, heads, block, dtype))
        out = _attend(case, q, k, v, rng_state)
        of_q, *of_kv = torch.autograd.grad(out, (q, k, v), grad_out[block.rows][:, heads].to(dtype))
        grad_q[block.rows] = of_q.double()
        for grad, part in zip((grad_k, grad_v), of_kv, strict=True):
            grad[block.offset : block.offset + len(part)].index_add_(1, read_by, part.double())
    return {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}


def max_error(value: Tensor, exact: Tensor) -> float:
    """Largest difference; infinite if anything is NaN."""
    difference = (value.double() - exact).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(difference.max())

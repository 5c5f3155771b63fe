"""Largest error of each contender against attention computed in float64.

The float64 reference is O(seqlen²), so large cases are checked on a sample: a few heads, a few
sequences, and of each the first, middle and last rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import Problem
from flash_attn2.reference import attention_reference

_SCORES = 2**23  # entries of the float64 score matrices, per case
_HEADS = 4
_SEQUENCES = 8
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
    """Maximal absolute errors; `low` is that of the plain formula at the inputs' own dtype."""

    contenders: Mapping[str, float]
    low: float
    checked: float  # share of the output rows and heads that was compared

    def within_tolerance(self, contender: str) -> bool:
        """The project's rule: at most twice the error of the plain formula, plus 1e-5."""
        return self.contenders[contender] <= 2 * self.low + _ABSOLUTE_TOLERANCE


def sample(case: Case) -> tuple[list[int], list[Block]]:
    """The query heads and the row blocks to check."""
    heads = _evenly(case.num_heads, _HEADS)
    sequences = _evenly(len(case.seqlens), _SEQUENCES)
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


def _evenly(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, the first and the last among them."""
    limit = min(count, limit)
    return sorted({round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)})


def measure(problem: Problem, outputs: Mapping[str, Tensor]) -> Errors:
    """Compares `outputs`, each (total, num_heads, head_dim), with the float64 reference."""
    case = problem.case
    heads, blocks = sample(case)
    errors = dict.fromkeys(outputs, 0.0)
    low_error = 0.0
    for block, exact, low in _references(problem, heads, blocks):
        low_error = max(low_error, _max_error(low, exact))
        for name, output in outputs.items():
            errors[name] = max(errors[name], _max_error(output[block.rows][:, heads], exact))
    compared = len(heads) * sum(block.row_end - block.row_begin for block in blocks)
    return Errors(errors, low_error, compared / (case.num_heads * case.total))


def _references(
    problem: Problem, heads: list[int], blocks: list[Block]
) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """For each block the reference in float64 and at the inputs' dtype, (rows, heads, head_dim)."""
    case = problem.case
    sequences = list(problem.sequences())
    for block in blocks:
        q, k, v = sequences[block.sequence]
        # The mask is aligned to the last key, so causal rows may be cut out with their keys.
        keys = slice(0, block.row_end if case.causal else None)
        kv_heads = [head // case.group_size for head in heads]
        q = q[block.row_begin : block.row_end, heads][None]
        k, v = k[keys, kv_heads][None], v[keys, kv_heads][None]
        exact, low = (
            attention_reference(
                q.to(dtype),
                k.to(dtype),
                v.to(dtype),
                causal=case.causal,
                window_size=case.window_size,
                softcap=case.softcap,
            )[0][0]
            for dtype in (torch.float64, problem.q.dtype)
        )
        yield block, exact, low


def _max_error(value: Tensor, exact: Tensor) -> float:
    """Largest difference; infinite if anything is NaN."""
    difference = (value.double() - exact).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(difference.max())

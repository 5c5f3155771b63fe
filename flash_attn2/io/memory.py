"""Memory that one attention holds at its peak, in bytes: training, so what backward needs stays."""

from __future__ import annotations

from flash_attn2.io.plans import backward_plan, forward_plan
from flash_attn2.io.problem import FLOAT_BYTES, Attention
from flash_attn2.masks import BlockMask


def standard(problem: Attention) -> int:
    """While the softmax is differentiated: P, dP and dS, beside q, k, v, out, dO and dV."""
    return 2 * problem.key_bytes + 4 * problem.value_bytes + 3 * problem.square_bytes


def flash2(problem: Attention, mask: BlockMask | None = None) -> int:
    """In the backward pass: q, k, v, out, their gradients, lse, and the workspace."""
    plans = forward_plan(problem, mask), backward_plan(problem, mask)
    workspace = max(plan.workspace_bytes for plan in plans)
    return _tensors(problem) + workspace


def listed(problem: Attention, mask: BlockMask) -> int:
    """As `flash2`, with the mask; its lists by keys are in the workspace."""
    tensors = (mask.row_offsets, mask.cols, mask.tiles, mask.bits)
    return flash2(problem, mask) + sum(tensor.nbytes for tensor in tensors)


def flash1(problem: Attention) -> int:
    """In the backward pass, as `flash2`, with the sums of dQ in float32."""
    sums = problem.rows * problem.head_dim * FLOAT_BYTES
    return _tensors(problem) + sums


def _tensors(problem: Attention) -> int:
    """Inputs, results, and gradients of all but lse."""
    return 4 * (problem.key_bytes + problem.value_bytes) + problem.lse_bytes

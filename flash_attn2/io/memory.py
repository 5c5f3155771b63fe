"""Memory that one attention holds at its peak, in bytes: training, so what backward needs stays."""

from __future__ import annotations

from flash_attn2.io.plans import backward_plan, forward_plan
from flash_attn2.io.problem import FLOAT_BYTES, Attention
from flash_attn2.masks import BlockMask


def standard(problem: Attention) -> int:
    """While the softmax is differentiated: P, dP and dS, beside q, k, v, out, dO and dV."""
    return 6 * problem.tensor_bytes + 3 * problem.square_bytes


def flash2(problem: Attention, mask: BlockMask | None = None) -> int:
    """In the backward pass: q, k, v, out, their gradients, lse, and the workspace."""
    plans = forward_plan(problem, mask), backward_plan(problem, mask)
    workspace = max(plan.workspace_bytes for plan in plans)
    return 8 * problem.tensor_bytes + problem.lse_bytes + workspace


def listed(problem: Attention, mask: BlockMask) -> int:
    """As `flash2`, with the mask; its lists by keys are in the workspace."""
    tensors = (mask.row_offsets, mask.cols, mask.tiles, mask.bits)
    return flash2(problem, mask) + sum(tensor.nbytes for tensor in tensors)


def flash1(problem: Attention) -> int:
    """In the backward pass, as `flash2`, with the sums of dQ in float32."""
    sums = problem.rows * problem.head_dim * FLOAT_BYTES
    return 8 * problem.tensor_bytes + problem.lse_bytes + sums

"""What torch.utils.flop_counter counts for the ops of context parallelism: what this rank computes,
queries of its heads against the whole sequence, as if none were masked."""

from __future__ import annotations

import torch

from flash_attn2._impl.flops import BACKWARD, BIAS, FORWARD, Named, Products, count_op, products
from flash_attn2.distributed.plan import plan_of_key


def _forward(count: Products, named: Named) -> int:
    q, v, plan = named["q"], named["v"], plan_of_key(named["plan"])
    own_heads = plan.head_shares[plan.rank % plan.ranks.heads].size
    first = plan.rank // plan.ranks.heads * plan.ranks.heads
    rows = sum(plan.rows[first : first + plan.ranks.heads])  # of all that share heads
    return products(count, q.shape[3], v.shape[3], q.shape[0] * own_heads * rows * plan.seqlen)


def _backward(count: Products, named: Named) -> int:
    batch, rows, own_heads, head_dim = named["saved_q"].shape
    seqlen = plan_of_key(named["plan"]).seqlen
    head_dim_v, scores = named["saved_v"].shape[3], batch * own_heads * rows * seqlen
    passes: int = sum(named["wanted"][4:])  # one for each bias
    of_biases = passes * products(BIAS, head_dim, head_dim_v, scores)
    return products(count, head_dim, head_dim_v, scores) + of_biases


def register() -> None:
    """As `flash_attn2._impl.flops.register`."""
    count_op(torch.ops.flash_attn2.context_forward, _forward, FORWARD)
    count_op(torch.ops.flash_attn2.context_backward, _backward, BACKWARD)

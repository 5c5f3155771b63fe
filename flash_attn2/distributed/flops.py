"""What torch.utils.flop_counter counts for the ops of context parallelism: what this rank computes,
its heads of the whole sequence."""

from __future__ import annotations

import torch

from flash_attn2._impl.flops import BACKWARD, BIAS, FORWARD, Named, Products, count_op, products
from flash_attn2.distributed.plan import plan_of_key


def _forward(count: Products, named: Named) -> int:
    q, v, plan = named["q"], named["v"], plan_of_key(named["plan"])
    own_heads = plan.head_shares[plan.rank].size
    return products(count, q.shape[3], v.shape[3], q.shape[0] * own_heads * plan.seqlen**2)


def _backward(count: Products, named: Named) -> int:
    batch, seqlen, own_heads, head_dim = named["saved_q"].shape
    head_dim_v, scores = named["saved_v"].shape[3], batch * own_heads * seqlen**2
    passes: int = sum(named["wanted"][4:])  # one for each bias
    of_biases = passes * products(BIAS, head_dim, head_dim_v, scores)
    return products(count, head_dim, head_dim_v, scores) + of_biases


def register() -> None:
    """As `flash_attn2._impl.flops.register`."""
    count_op(torch.ops.flash_attn2.context_forward, _forward, FORWARD)
    count_op(torch.ops.flash_attn2.context_backward, _backward, BACKWARD)

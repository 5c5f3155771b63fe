"""Attention of one sequence that lies on several ranks: context parallelism.

from flash_attn2.distributed import context_attention, context_plan

plan = context_plan(group, seqlen, num_heads=32, num_heads_kv=8)
x = plan.shard(x, 1)  # this rank's rows, whose positions are plan.positions
out = context_attention(q, k, v, plan)  # of these rows
print(plan.report())
"""

from flash_attn2.distributed.attention import context_attention
from flash_attn2.distributed.cluster import Cluster, Timing
from flash_attn2.distributed.decoding import sharded_kvcache_attention
from flash_attn2.distributed.plan import ContextPlan, context_plan
from flash_attn2.distributed.report import PlanReport

__all__ = [
    "Cluster",
    "ContextPlan",
    "PlanReport",
    "Timing",
    "context_attention",
    "context_plan",
    "sharded_kvcache_attention",
]

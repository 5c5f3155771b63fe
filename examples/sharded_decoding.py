"""Decoding over a KV cache that lies on several ranks, each of which has a part of the keys.

torchrun --nproc-per-node 4 examples/sharded_decoding.py [tokens of the prompt]
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from flash_attn2 import flash_attn_func
from flash_attn2.distributed import sharded_kvcache_attention

BATCH, NUM_HEADS, NUM_HEADS_KV, HEAD_DIM, STEPS = 2, 8, 2, 64, 8


def main(seqlen: int) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # all ranks draw the same whole, of which each keeps its part
    total = seqlen + STEPS
    q = torch.randn(BATCH, STEPS, NUM_HEADS, HEAD_DIM)
    k, v = torch.randn(2, BATCH, total, NUM_HEADS_KV, HEAD_DIM)

    # Token i is on rank i % ranks, so that the cache of every rank grows alike.
    k_cache, v_cache = (x[:, rank::ranks].contiguous() for x in (k, v))
    for step in range(STEPS):
        end = seqlen + step + 1
        here = len(range(rank, end, ranks))
        out = sharded_kvcache_attention(
            q[:, step : step + 1], k_cache, v_cache, dist.group.WORLD, cache_seqlens=here
        )
        expected = flash_attn_func(q[:, step : step + 1], k[:, :end], v[:, :end])
        torch.testing.assert_close(out, expected)
    if rank == 0:
        cache = 2 * k_cache.numel() * k_cache.element_size() / 2**20
        print(f"{STEPS} steps, {total} keys on {ranks} ranks: {cache:.1f} MiB of cache on each")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
    dist.destroy_process_group()

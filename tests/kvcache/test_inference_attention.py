"""Attention over a PagedKVCache, against the keys and values of each sequence in one piece."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import CPU_FLOAT32, ONE_DTYPE, Target, assert_within_rule, targets
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.inference import PagedKVCache, Step
from flash_attn2.reference import attention_reference


class Attending:
    """A cache of one layer, and beside it the keys and values of each sequence in one piece."""

    def __init__(self, target: Target, **options: Any) -> None:
        self.target = target
        self.cache = PagedKVCache(1, 40, 5, 2, 64, target.dtype, target.device, **options)
        for kv in self.cache.layers[0]:
            kv.fill_(torch.nan)
        self.kv: dict[int, Tensor] = {}  # (2, length, heads, head_dim)

    def allocate(self) -> int:
        sequence = self.cache.allocate()
        self.kv[sequence] = self.target.tensor(2, 0, 2, 64)
        return sequence

    def fork(self, parent: int, length: int | None = None) -> int:
        sequence = self.cache.fork(parent, length)
        self.kv[sequence] = self.kv[parent][:, :length]
        return sequence

    def truncate(self, sequence: int, length: int) -> None:
        self.cache.truncate(sequence, length)
        self.kv[sequence] = self.kv[sequence][:, :length]

    def append(self, counts: dict[int, int]) -> tuple[Step, Tensor, Tensor]:
        """A step, and random queries, keys and values for it, packed."""
        total = sum(counts.values())
        kv = self.target.tensor(2, total, 2, 64)
        new = kv.split(list(counts.values()), 1)
        for sequence, piece in zip(counts, new, strict=True):
            self.kv[sequence] = torch.cat((self.kv[sequence], piece), 1)
        step = self.cache.append(list(counts), list(counts.values()))
        return step, self.target.tensor(total, 4, 64), kv

    def check(self, counts: dict[int, int], q: Tensor, out: Tensor) -> None:
        lengths = list(counts.values())
        pieces = zip(counts, q.split(lengths), out.split(lengths), strict=True)
        for sequence, queries, result in pieces:
            qkv = (queries[None], *self.kv[sequence][:, None])
            exact, low = (
                attention_reference(*(x.to(dtype) for x in qkv), causal=True)[0][0]
                for dtype in (torch.float64, self.target.dtype)
            )
            assert_within_rule("out", result, exact, low)


@targets([CPU_FLOAT32, *ONE_DTYPE])
def test_attention_over_shared_pages(target: Target) -> None:
    decoding = Attending(target)

    def attend(counts: dict[int, int]) -> None:
        step, q, kv = decoding.append(counts)
        layer = decoding.cache.layers[0]
        out: Any = flash_attn_with_kvcache(q, *layer, *kv, causal=True, **step._asdict())
        decoding.check(counts, q, out)

    parent = decoding.allocate()
    attend({parent: 13})
    whole, part = decoding.fork(parent), decoding.fork(parent, 7)
    attend({parent: 1, whole: 1, part: 9})
    decoding.truncate(whole, 11)
    attend({whole: 3, parent: 1, decoding.allocate(): 6})
    decoding.cache.free(parent)
    attend({whole: 1, part: 1})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_of_a_step() -> None:
    """Captured once, with most sequences; replayed as they grow, and for fewer."""
    decoding = Attending(Target("cuda", torch.float16), max_batch=3, max_seqlen=40)
    sequences = [decoding.allocate() for _ in range(3)]
    q, k, v = (decoding.target.tensor(3, 1, heads, 64) for heads in (4, 2, 2))

    def attend(step: Step) -> Any:
        lengths = {"cache_seqlens": step.cache_seqlens, "block_table": step.block_table}
        return flash_attn_with_kvcache(q, *decoding.cache.layers[0], k, v, causal=True, **lengths)

    graph = torch.cuda.CUDAGraph()
    out = None
    for batch in (3, 3, 3, 2, 1, 3):
        counts = dict.fromkeys(sequences[:batch], 1)
        step, queries, kv = decoding.append(counts)
        for fixed, new in zip((q, k, v), (queries, *kv), strict=True):
            fixed[:batch, 0] = new
        if out is None:
            attend(step)  # loads kernels
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                out = attend(step)
        graph.replay()
        decoding.check(counts, queries, out[:batch, 0])

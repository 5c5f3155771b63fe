"""What is compared over a KV cache: flash_attn2, and SDPA in two ways.

A step of decoding goes through the layers of a model, and finds none of a layer's keys and values
in the processor's caches. So a problem has layers, enough of them to fill those caches, and every
call reads the next one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError
from flash_attn2.bench.timing import Run

SDPA_PACKED = "SDPA packed"

_COLD = {"cpu": 2**28, "cuda": 0}  # bytes that all layers take; CudaClock clears the cache

Layer = tuple[Tensor, Tensor]  # keys and values


@dataclass(frozen=True)
class DecodeProblem:
    """Queries (batch, 1, num_heads, head_dim), and layers of a cache that is full.

    Keys and values are (batch, seqlen_k, num_heads_kv, head_dim), or with a `block_table`
    (num_pages, page_size, num_heads_kv, head_dim), their pages in random order.
    """

    case: DecodeCase
    q: Tensor
    layers: list[Layer]
    cache_seqlens: Tensor
    block_table: Tensor | None

    @staticmethod
    def create(case: DecodeCase, device: str, cold_bytes: int | None = None) -> DecodeProblem:
        generator = torch.Generator(device).manual_seed(0)

        def tensor(*shape: int) -> Tensor:
            empty = torch.empty(shape, dtype=case.torch_dtype, device=device)
            return empty.normal_(generator=generator)

        rows = (case.batch, case.seqlen_k)
        block_table = None
        if case.page_size:
            pages = -(-case.seqlen_k // case.page_size)
            rows = (case.batch * pages, case.page_size)
            order = torch.randperm(case.batch * pages, generator=generator, device=device)
            block_table = order.view(case.batch, pages).int()
        heads = (case.num_heads_kv, case.head_dim)
        cold_bytes = _COLD[device] if cold_bytes is None else cold_bytes
        first = tensor(*rows, *heads), tensor(*rows, *heads)
        # Copies: their values do not matter to the time.
        more = max(-(-cold_bytes // case.kv_bytes), 1) - 1
        layers = [first, *((first[0].clone(), first[1].clone()) for _ in range(more))]
        cache_seqlens = torch.full((case.batch,), case.seqlen_k, dtype=torch.int32, device=device)
        q = tensor(case.batch, 1, case.num_heads, case.head_dim)
        return DecodeProblem(case, q, layers, cache_seqlens, block_table)

    def sequence(self, index: int) -> Layer:
        """Keys and values (seqlen_k, num_heads_kv, head_dim) of one sequence in the first layer."""
        k, v = self.layers[0]
        if self.block_table is None:
            return k[index], v[index]
        pages = self.block_table[index]
        seqlen = self.case.seqlen_k
        return k[pages].flatten(0, 1)[:seqlen], v[pages].flatten(0, 1)[:seqlen]

    @functools.cached_property
    def heads_first(self) -> list[Layer]:
        """As SDPA likes them: (batch, num_heads_kv, seqlen_k, head_dim), contiguous, no pages."""
        sequences = [self.sequence(index) for index in range(self.case.batch)]
        k, v = (
            torch.stack([x.transpose(0, 1) for x in tensors])
            for tensors in zip(*sequences, strict=True)
        )
        return [(k, v), *((k.clone(), v.clone()) for _ in self.layers[1:])]


@dataclass(frozen=True)
class DecodeCall:
    attend: Callable[[Tensor, Tensor], Tensor]  # keys and values of a layer -> result
    layers: list[Layer]

    def timed(self) -> Run:
        """Each call reads the next layer."""
        layers = itertools.cycle(self.layers)
        return lambda: self.attend(*next(layers))

    def result(self, problem: DecodeProblem) -> Tensor:
        """(batch, num_heads, head_dim) of the first layer."""
        case = problem.case
        return self.attend(*self.layers[0]).reshape(case.batch, case.num_heads, case.head_dim)


def _flash_attn2(problem: DecodeProblem) -> DecodeCall:
    q, cache_seqlens, block_table = problem.q, problem.cache_seqlens, problem.block_table

    def attend(k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn2.flash_attn_with_kvcache(
            q, k, v, cache_seqlens=cache_seqlens, block_table=block_table
        )
        assert isinstance(out, Tensor)
        return out

    return DecodeCall(attend, problem.layers)


def _sdpa(problem: DecodeProblem) -> DecodeCall:
    q = problem.q.transpose(1, 2).contiguous()
    enable_gqa = problem.case.group_size > 1
    return DecodeCall(
        lambda k, v: scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa),
        problem.heads_first,
    )


def _sdpa_packed(problem: DecodeProblem) -> DecodeCall:
    """The query heads of a group as queries of one head."""
    case = problem.case
    if case.group_size == 1:
        raise UnavailableError("no groups")
    q = problem.q.view(case.batch, case.num_heads_kv, case.group_size, case.head_dim)
    return DecodeCall(lambda k, v: scaled_dot_product_attention(q, k, v), problem.heads_first)


CONTENDERS: Mapping[str, Callable[[DecodeProblem], DecodeCall]] = {
    FLASH_ATTN2: _flash_attn2,
    SDPA: _sdpa,
    SDPA_PACKED: _sdpa_packed,
}


def read_memory(device: str) -> tuple[Run, int]:
    """A call that reads memory as fast as possible, and how many bytes.

    A sum: on a CPU within 2% of a loop in C++ that does nothing else.
    """
    buffer = torch.ones(2**26 if device == "cpu" else 2**28, device=device)
    return buffer.sum, buffer.nbytes

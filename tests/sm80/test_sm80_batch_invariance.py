"""The CUDA kernels, in the emulator: a sequence's bits do not depend on what else a call holds.

Each test computes a sequence on its own, with bounds that fit it, and as one of many: among longer
and shorter ones, so many that the device is full, in a larger cache, with a wider table and other
pages.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends

HEADS, HEADS_KV, HEAD_DIM = 6, 2, 64
FULL = 109  # sequences of so many KV heads occupy an A100 on their own
SPLITS = (0, 1, 3)

pytestmark = pytest.mark.usefixtures("emulated")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def cumulative(lengths: list[int]) -> Tensor:
    return int32(0, *torch.tensor(lengths).cumsum(0).tolist())


def packed_with(x: Tensor, lengths: list[int], at: int) -> Tensor:
    """Packed rows of so many sequences, of which number `at` is x."""
    parts = [randn(length, *x.shape[1:]) for length in lengths]
    parts[at] = x
    return torch.cat(parts)


def same(alone: Any, together: Any) -> None:
    for x, y in zip(alone, together, strict=True):
        assert x.isfinite().all()
        assert torch.equal(x, y)


def in_pages(rows: Tensor, page_size: int, columns: int, batch: int, at: int) -> Any:
    """A cache of `batch` sequences in shuffled pages, of which number `at` holds `rows`."""
    pages = randn(batch * columns, page_size, *rows.shape[1:])
    table = torch.randperm(batch * columns).view(batch, columns).int()
    for position in range(rows.shape[0]):
        page, row = divmod(position, page_size)
        pages[table[at, page], row] = rows[position]
    return pages, table


def in_rows(rows: Tensor, capacity: int, batch: int, at: int) -> Tensor:
    cache = randn(1, capacity, *rows.shape[1:]).expand(batch, -1, -1, -1).clone()
    cache[at, : rows.shape[0]] = rows
    return cache


class Cached:
    """One sequence of a cache, alone or as one of many."""

    def __init__(self, seqlen_q: int, held: int) -> None:
        self.q = randn(seqlen_q, HEADS, HEAD_DIM)
        self.keys = randn(held, HEADS_KV, HEAD_DIM)
        self.values = randn(held, HEADS_KV, HEAD_DIM)

    def caches(self, page_size: int | None, capacity: int, batch: int, at: int) -> dict[str, Any]:
        if page_size is None:
            return {
                "k_cache": in_rows(self.keys, capacity, batch, at),
                "v_cache": in_rows(self.values, capacity, batch, at),
            }
        columns = -(-capacity // page_size)
        state = torch.get_rng_state()
        k, table = in_pages(self.keys, page_size, columns, batch, at)
        torch.set_rng_state(state)
        v, _ = in_pages(self.values, page_size, columns, batch, at)
        return {"k_cache": k, "v_cache": v, "block_table": table}

    def dense(
        self,
        lengths: list[int] | int,
        at: int,
        page_size: int | None,
        capacity: int,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """With dense queries; lengths as an int: of all sequences."""
        batch = 1 if isinstance(lengths, int) else len(lengths)
        q = randn(batch, *self.q.shape)
        q[at] = self.q
        held = lengths if isinstance(lengths, int) else int32(*lengths)
        caches = self.caches(page_size, capacity, batch, at)
        out, lse = flash_attn_with_kvcache(
            q, **caches, cache_seqlens=held, causal=True, return_softmax_lse=True, **options
        )
        return out[at], lse[at]

    def packed(
        self,
        queries: list[int],
        lengths: list[int],
        at: int,
        page_size: int | None,
        capacity: int,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        out, lse = flash_attn_with_kvcache(
            packed_with(self.q, queries, at),
            **self.caches(page_size, capacity, len(queries), at),
            cache_seqlens=int32(*lengths),
            cu_seqlens_q=cumulative(queries),
            causal=True,
            return_softmax_lse=True,
            **options,
        )
        begin = sum(queries[:at])
        return out[begin : begin + queries[at]], lse[:, begin : begin + queries[at]]


@pytest.mark.parametrize("num_splits", SPLITS)
@pytest.mark.parametrize(
    ("page_size", "options"),
    [(None, {}), (16, {"window_size": (300, 0)}), (None, {"softcap": 3.0})],
    ids=str,
)
def test_decoding(options: dict[str, Any], page_size: int | None, num_splits: int) -> None:
    held = 700
    one = Cached(1, held)
    options = options | {"num_splits": num_splits}
    alone = one.dense([held], 0, page_size, held, **options)
    same(alone, one.dense(held, 0, page_size, held, **options))
    same(alone, one.dense([9, held, 3000], 1, page_size, 4000, **options))
    same(alone, one.dense([5] * FULL + [held], FULL, page_size, 720, **options))


@pytest.mark.parametrize("held", [1, 128, 129, 1100])
def test_decoding_any_length(held: int) -> None:
    one = Cached(1, held)
    alone = one.dense([held], 0, None, held)
    same(alone, one.dense([held, 1], 0, None, 9000))
    same(alone, one.dense([1] * FULL + [held], FULL, None, 1200))


@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize(("seqlen_q", "page_size"), [(6, None), (6, 16), (40, None), (90, None)])
def test_prefill_of_a_chunk(seqlen_q: int, page_size: int | None, num_splits: int) -> None:
    held = 500 if seqlen_q == 40 else 1300
    one = Cached(seqlen_q, held)
    alone = one.dense([held], 0, page_size, held, num_splits=num_splits)
    same(alone, one.dense(held, 0, page_size, held, num_splits=num_splits))
    same(alone, one.dense([30, held, 2500], 1, page_size, 2600, num_splits=num_splits))


@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize(
    ("seqlen_q", "page_size"),
    [(1, None), (1, 16), (5, 16), (6, None), (6, 16), (40, None), (150, None), (150, 16)],
)
def test_packed_queries_of_a_cache(seqlen_q: int, page_size: int | None, num_splits: int) -> None:
    held = 1200 if seqlen_q < 40 else 400
    one = Cached(seqlen_q, held)
    options: dict[str, Any] = {"num_splits": num_splits}
    alone = one.packed([seqlen_q], [held], 0, page_size, held, **options)
    bounded = options | {"max_seqlen_q": 999}
    same(alone, one.packed([seqlen_q], [held], 0, page_size, 2 * held, **bounded))
    queries, lengths = [2, seqlen_q, 200, 0, 7], [50, held, 250, 9, 1300]
    same(alone, one.packed(queries, lengths, 1, page_size, 1300, **options))
    if num_splits == 0:
        many, short = [1] * FULL + [seqlen_q], [3] * FULL + [held]
        same(alone, one.packed(many, short, FULL, page_size, 1250, **options))


@pytest.mark.parametrize(
    ("seqlen_q", "options"),
    [
        (1, {}),
        (5, {"sink": torch.ones(HEADS)}),
        (6, {"causal": True}),
        (128, {}),
        (140, {"causal": True}),
    ],
    ids=str,
)
def test_packed_sequences(options: dict[str, Any], seqlen_q: int) -> None:
    seqlen_k = 260
    q = randn(seqlen_q, HEADS, HEAD_DIM)
    k, v = randn(2, seqlen_k, HEADS_KV, HEAD_DIM)
    options = options | {"return_attn_probs": True}

    def run(queries: list[int], keys: list[int], at: int, slack: int) -> list[Tensor]:
        k_all, v_all = packed_with(k, keys, at), packed_with(v, keys, at)
        bounds = max(queries) + slack, max(keys) + slack
        out, lse, *_ = flash_attn_varlen_func(
            packed_with(q, queries, at),
            k_all,
            v_all,
            cumulative(queries),
            cumulative(keys),
            *bounds,
            **options,
        )
        begin = sum(queries[:at])
        rows = slice(begin, begin + queries[at])
        return [out[rows], lse[:, rows]]

    alone = run([seqlen_q], [seqlen_k], 0, 0)
    same(alone, run([seqlen_q], [seqlen_k], 0, 5000))
    same(alone, run([3, seqlen_q, 300], [7, seqlen_k, 333], 1, 0))
    same(alone, run([1] * FULL + [seqlen_q], [2] * FULL + [seqlen_k], FULL, 1))


@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k"), [(1, 700), (6, 1300), (40, 300), (100, 1300), (130, 300)]
)
def test_dense_sequences(seqlen_q: int, seqlen_k: int) -> None:
    batch = FULL if seqlen_q == 1 else 5
    q = randn(batch, seqlen_q, HEADS, HEAD_DIM)
    k, v = randn(2, batch, seqlen_k, HEADS_KV, HEAD_DIM)

    def run(part: slice) -> list[Tensor]:
        out, lse, *_ = flash_attn_func(
            q[part], k[part], v[part], causal=True, return_attn_probs=True
        )
        return [out, lse]

    together = run(slice(None))
    for b in (0, batch - 1):
        same(run(slice(b, b + 1)), [x[b : b + 1] for x in together])


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"softcap": 4.0}], ids=str)
def test_gradients(options: dict[str, Any]) -> None:
    lengths_q, lengths_k = [5, 140, 70, 0], [60, 200, 300, 10]
    tensors = (
        *randn(2, sum(lengths_q), HEADS, HEAD_DIM),
        *randn(2, sum(lengths_k), HEADS_KV, HEAD_DIM),
    )

    def run(first: int, last: int, slack: int) -> list[Tensor]:
        rows_q = slice(sum(lengths_q[:first]), sum(lengths_q[:last]))
        rows_k = slice(sum(lengths_k[:first]), sum(lengths_k[:last]))
        grad_out, q = (x[rows_q].clone() for x in tensors[:2])
        k, v = (x[rows_k].clone() for x in tensors[2:])
        leaves = [x.requires_grad_() for x in (q, k, v)]
        own_q, own_k = lengths_q[first:last], lengths_k[first:last]
        cu_seqlens = cumulative(own_q), cumulative(own_k)
        bounds = max(own_q) + slack, max(own_k) + slack
        out = flash_attn_varlen_func(*leaves, *cu_seqlens, *bounds, deterministic=True, **options)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

    together = run(0, 4, 0)
    for b in range(3):
        alone = run(b, b + 1, 600)
        q, k = (
            slice(sum(lengths_q[:b]), sum(lengths_q[: b + 1])),
            slice(sum(lengths_k[:b]), sum(lengths_k[: b + 1])),
        )
        same(alone, [x[rows] for x, rows in zip(together, (q, q, k, k), strict=True)])


def test_gradients_of_dense_sequences() -> None:
    q, grad_out = randn(2, 4, 150, HEADS, HEAD_DIM)
    k, v = randn(2, 4, 170, HEADS_KV, HEAD_DIM)

    def run(part: slice) -> list[Tensor]:
        leaves = [x[part].clone().requires_grad_() for x in (q, k, v)]
        out = flash_attn_func(*leaves, causal=True, deterministic=True)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad_out[part])]

    together = run(slice(None))
    same(run(slice(2, 3)), [x[2:3] for x in together])


def test_the_sequences_above_meet_every_kernel_and_sharing() -> None:
    """What the tests rely on: that alone and together are planned differently."""
    module = backends.load("sm80-emulated").module
    plans: list[str] = []
    for batch, seqlen_k in ((1, 700), (FULL + 1, 720), (3, 4000)):
        plans.append(
            module.plan_forward(
                {
                    "dtype": "bfloat16",
                    "batch": batch,
                    "seqs_q": {"max_seqlen": 1},
                    "seqs_k": {"max_seqlen": seqlen_k},
                    "num_heads": HEADS,
                    "num_heads_kv": HEADS_KV,
                    "head_dim": HEAD_DIM,
                    "softmax_scale": 1.0,
                    "window": {"left": -1, "right": 0},
                    "q": (64, 0, 0, 0),
                    "k": (64, 0, 0, 0),
                    "v": (64, 0, 0, 0),
                    "out": (64, 0, 0, 0),
                    "lse": 64,
                },
                0,
            )
        )
    ctas = [plan.split(" CTAs a sequence")[0].rsplit(" ", 1)[1] for plan in plans]
    assert len(set(ctas)) == 3, plans

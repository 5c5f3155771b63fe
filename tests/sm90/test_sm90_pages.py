"""Varlen calls with a block table in the sm90 kernels: which calls and sequences they serve, and
that pages change no bit of what packed keys give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import NONSENSE
from support import (
    HALF,
    Target,
    assert_lse,
    assert_within_rule,
    cumulative,
    emulator_options,
    lengths,
    run_varlen,
    targets,
)
from test_sm90_forward import BUCKETS, kernels_of_sm80, launches_of_sm90
from torch import Tensor

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.reference import Packing, varlen_attention_reference

ONE_DTYPE = [Target("sm90-emulated", HALF[1])]

# Queries and keys of sequences whose keys no kernel would split.
SEQLENS = ((130, 333), (70, 413), (0, 12), (65, 0), (67, 8))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (90, 3)},
    "softcap": {"softcap": 3.0, "causal": True},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 1.0])},
    "sink": {"sink": torch.tensor([1.0, -2.0, 0.0, 3.0]), "causal": True},
}


class Paged:
    """Sequences, of which the second one begins with the pages of the first."""

    def __init__(
        self,
        target: Target,
        page_size: int,
        seqlens: tuple[tuple[int, int], ...] = SEQLENS,
        widths: tuple[int, int] = (128, 128),
    ) -> None:
        seqlens_q, self.seqlens_k = zip(*seqlens, strict=True)
        torch.manual_seed(7)
        self.page_size = page_size
        self.q = target.tensor(sum(seqlens_q), 4, widths[0])
        self.k, self.v = (target.tensor(sum(self.seqlens_k), 2, width) for width in widths)
        self.packing = Packing(
            cumulative(*seqlens_q),
            cumulative(*self.seqlens_k),
            None,
            max(seqlens_q),
            max(self.seqlens_k),
        )
        common = 0
        if len(seqlens) > 1:
            common = min(self.seqlens_k[:2]) // page_size
            for x in (self.k, self.v):
                first = self.seqlens_k[0]
                x[first : first + common * page_size] = x[: common * page_size]
        self.table = self._table(common)

    def _table(self, common: int) -> Tensor:
        counts = [-(-seqlen // self.page_size) for seqlen in self.seqlens_k]
        self.num_pages = sum(counts) + 3
        free = iter(torch.randperm(self.num_pages).tolist())
        columns = max(counts) + 1
        rows = [[next(free) for _ in range(count)] for count in counts]
        if common:
            rows[1][:common] = rows[0][:common]
        nonsense = [*NONSENSE] * columns
        return lengths(*(x for row in rows for x in (row + nonsense)[:columns])).view(-1, columns)

    def in_pages(self, x: Tensor) -> Tensor:
        """NaN wherever no sequence has a row; K and V lie side by side."""
        shape = (self.num_pages, self.page_size, 2, *x.shape[1:])
        pages = torch.full(shape, torch.nan, dtype=x.dtype)[:, :, 1]
        for rows, entries in zip(x.split(self.seqlens_k), self.table, strict=True):
            for page, part in zip(entries, rows.split(self.page_size), strict=False):
                pages[page, : len(part)] = part
        return pages

    def run(self, **options: Any) -> tuple[Tensor, Tensor]:
        result: Any = run_varlen(
            *(self.q, self.in_pages(self.k), self.in_pages(self.v), self.packing),
            block_table=self.table,
            return_lse=True,
            **options,
        )
        return result

    def check(self, **options: Any) -> None:
        exact, low = (
            varlen_attention_reference(
                *(x.to(dtype) for x in (self.q, self.k, self.v)), self.packing, **options
            )
            for dtype in (torch.float64, self.q.dtype)
        )
        out, lse = self.run(**options)
        assert_within_rule("out", out, exact[0], low[0])
        assert_lse(lse, exact[1], options.get("softcap", 0.0))


@targets([Target("sm90-emulated", dtype) for dtype in HALF])
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}], ids=str)
def test_every_kernel(bucket: tuple[int, int], options: dict[str, Any], target: Target) -> None:
    case = Paged(target, 16, ((130, 333), (20, 200)), bucket)
    with launches_of_sm90(True):
        case.check(causal=True, **options)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("page_size", [8, 16, 24, 64, 256])
@pytest.mark.parametrize("name", OPTIONS)
def test_pages_change_no_bit(name: str, page_size: int, target: Target) -> None:
    case, options = Paged(target, page_size), OPTIONS[name]
    case.check(**options)
    with launches_of_sm90(True):
        of_pages = case.run(**options)
    packed = run_varlen(case.q, case.k, case.v, case.packing, return_lse=True, **options)
    for x, expected in zip(of_pages, packed, strict=True):
        assert torch.equal(x, expected)


@targets(ONE_DTYPE)
def test_numbers_of_keys_by_seqused_k(target: Target) -> None:
    case = Paged(target, 16)
    expected = case.run(causal=True)
    used = lengths(*case.seqlens_k)
    case.packing = case.packing._replace(
        cu_seqlens_k=cumulative(*(n + 5 for n in case.seqlens_k)),
        seqused_k=used,
        max_seqlen_k=case.packing.max_seqlen_k + 5,
    )
    case.table = torch.cat([case.table, case.table[:, -1:]], 1)
    with launches_of_sm90(True):
        actual = case.run(causal=True)
    assert all(map(torch.equal, actual, expected))


@targets(ONE_DTYPE)
@pytest.mark.parametrize("options", ["seed=3,async=early", "seed=4,async=random,ctas=4"])
def test_schedules(options: str, target: Target) -> None:
    with emulator_options(options, target.backend), launches_of_sm90(True):
        Paged(target, 24, (*SEQLENS, (1, 300), (12, 40))).check(causal=True)


# Of each sequence: queries, keys, and whether sm90 computes it. Two heads share those of keys.
EACH = ((1, 300, False), (8, 300, False), (9, 300, True), (33, 70, True), (130, 90, True))


@targets(ONE_DTYPE)
def test_which_sequences_are_split(target: Target) -> None:
    """By its own lengths, and so with the same bits, alone and beside others."""
    together = Paged(target, 16, tuple(each[:2] for each in EACH))
    out, lse = together.run(causal=True)
    with kernels_of_sm80():
        by_sm80, _ = together.run(causal=True)
    ends = together.packing.cu_seqlens_q.tolist()
    for i, (queries, keys, on_sm90) in enumerate(EACH):
        rows = slice(ends[i], ends[i + 1])
        assert torch.equal(out[rows], by_sm80[rows]) != on_sm90
        alone = Paged(target, 16, ((queries, keys),))
        alone.q = together.q[rows]
        alone.k, alone.v = (x.split(together.seqlens_k)[i] for x in (together.k, together.v))
        with launches_of_sm90(on_sm90):
            result = alone.run(causal=True)
        assert torch.equal(result[0], out[rows])
        assert torch.equal(result[1], lse[:, rows])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("page_size", [1, 12, 20])
def test_other_pages_are_left_to_sm80(page_size: int, target: Target) -> None:
    with launches_of_sm90(False):
        Paged(target, page_size, ((70, 90), (1, 40))).check(causal=True)


@targets(ONE_DTYPE)
def test_caches_are_left_to_sm80(target: Target) -> None:
    """The same queries, keys and table, by the entry point of caches."""
    case = Paged(target, 16)
    with launches_of_sm90(False):
        flash_attn_with_kvcache(
            *(case.q, case.in_pages(case.k), case.in_pages(case.v)),
            cache_seqlens=lengths(*case.seqlens_k),
            block_table=case.table,
            cu_seqlens_q=case.packing.cu_seqlens_q,
            max_seqlen_q=case.packing.max_seqlen_q,
        )


@targets(ONE_DTYPE)
def test_compiled_calls_run_the_same_kernels(target: Target) -> None:
    torch._dynamo.reset()
    case = Paged(target, 16, ((70, 90),))
    arguments = (case.q, case.in_pages(case.k), case.in_pages(case.v), *case.packing[:2], 70, 90)
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    with launches_of_sm90(True):
        traced = compiled(*arguments, block_table=case.table)
    assert torch.equal(traced, case.run()[0])


@targets(ONE_DTYPE)
@pytest.mark.parametrize("page_size", [8, 64])
def test_only_rows_that_count_are_read(page_size: int, target: Target) -> None:
    """One tile of queries for each head of keys: every row once."""
    case = Paged(target, page_size, ((64, 205),))
    module: Any = backends.load(target.backend).module
    module.reset_counters()
    case.run()
    cost = module.counters()
    assert cost["wgmma"] > 0
    for name, x in {"k": case.k, "v": case.v}.items():
        assert cost[f"read.{name}.bytes"] == x.nbytes
        assert cost[f"read.{name}.distinct_sectors"] * 32 == x.nbytes

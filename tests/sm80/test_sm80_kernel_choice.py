"""Calls whose sequences go to different kernels, in the emulator: each to one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import check_kvcache
from support import Target, assert_lse, assert_within_rule, cumulative, lengths

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.reference import attention_reference

HEAD_DIM = 64
# By the size of a group: queries and keys. Up to 16 rows of a KV head are few; more of them, up to
# a tile of 128 queries, are split where there are keys enough, or share a tile where that saves a
# fifth.
SEQUENCES = {
    1: {
        "few": (1, 90),
        "few_of_many_keys": (16, 1100),
        "many_keys": (17, 1100),
        "tile": (20, 200),
        "tiles": (150, 100),
    },
    3: {
        "few": (5, 90),
        "shared": (6, 90),
        "shared_by_many_keys": (30, 1100),  # which are not split: the rows are too many
        "shared_tiles": (50, 100),
        "tile": (128, 100),
    },
}

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize(
    ("group", "num_splits", "written"),
    [
        (
            *(1, 0),
            {
                "SplitKernel": ["few"],
                "CombineKernel": ["few_of_many_keys", "many_keys"],
                "FwdKernel": ["tile", "tiles"],
            },
        ),
        (
            *(1, 1),
            {
                "SplitKernel": ["few", "few_of_many_keys"],
                "FwdKernel": ["many_keys", "tile", "tiles"],
            },
        ),
        (
            *(3, 0),
            {
                "SplitKernel": ["few", "shared", "shared_by_many_keys", "shared_tiles"],
                "FwdKernel": ["tile"],
            },
        ),
    ],
)
def test_each_sequence_goes_to_one_kernel(
    group: int, num_splits: int, written: dict[str, list[str]]
) -> None:
    """Which writes all of its rows, and no other does."""
    target = Target("sm80-emulated", torch.float16)
    sequences = SEQUENCES[group]
    rows, keys = zip(*sequences.values(), strict=True)
    arguments: dict[str, Any] = {
        "q": target.tensor(sum(rows), group, HEAD_DIM),
        "k_cache": target.tensor(len(keys), max(keys), 1, HEAD_DIM),
        "v_cache": target.tensor(len(keys), max(keys), 1, HEAD_DIM),
        "cu_seqlens_q": cumulative(*rows),
        "cache_seqlens": lengths(*keys),
        "causal": True,
        "num_splits": num_splits,
    }
    module = backends.load("sm80-emulated").module
    module.reset_counters()
    check_kvcache(**arguments)
    counted = module.counters_by_kernel()
    for name, row_bytes in (("out", 2 * HEAD_DIM), ("lse", 4)):
        found = {
            kernel: counters[f"write.{name}.bytes"] / (group * row_bytes)
            for kernel, counters in counted.items()
            if counters.get(f"write.{name}.bytes", 0) > 0
        }
        assert found == {
            kernel: sum(sequences[sequence][0] for sequence in of_kernel)
            for kernel, of_kernel in written.items()
        }


def test_sequences_of_as_many_queries_go_by_their_keys() -> None:
    """More rows than packed queries are split for."""
    target = Target("sm80-emulated", torch.float16)
    arguments: dict[str, Any] = {
        "q": target.tensor(2, 100, 1, HEAD_DIM),
        "k_cache": target.tensor(2, 1100, 1, HEAD_DIM),
        "v_cache": target.tensor(2, 1100, 1, HEAD_DIM),
        "cache_seqlens": lengths(1100, 200),
    }
    check_kvcache(**arguments)


def test_queries_in_use_decide() -> None:
    """Of sequences that are as long otherwise: which kernel takes them, beside one that combines
    what splits leave.
    """
    target = Target("sm80-emulated", torch.float16)
    used = lengths(200, 100, 20, 10)
    q = target.tensor(4, 200, 1, HEAD_DIM)
    k, v = (target.tensor(4, 4200, 1, HEAD_DIM) for _ in "kv")
    out, lse = flash_attn_func(q, k, v, seqused_q=used, return_lse=True)
    exact, low = (
        attention_reference(q.to(dtype), k.to(dtype), v.to(dtype), lengths_q=used.long())
        for dtype in (torch.float64, q.dtype)
    )
    assert_within_rule("out", out, exact[0], low[0])
    assert_lse(lse, exact[1])


def test_fewer_rows_than_the_bound_have_more_splits() -> None:
    """Of 28 heads the device holds seven CTAs each, and tiles of 32 rows split 17 rows in two."""
    target = Target("sm80-emulated", torch.bfloat16)
    check_kvcache(
        q=target.tensor(17, 28, 264),
        k_cache=target.tensor(17, 64, 28, 264),
        v_cache=target.tensor(17, 64, 28, 264),
        cu_seqlens_q=cumulative(17),
        max_seqlen_q=64,
        block_table=torch.arange(17, dtype=torch.int32)[None],
        cache_seqlens=lengths(1025),
    )

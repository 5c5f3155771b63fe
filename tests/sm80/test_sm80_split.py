"""The split kernels in the emulator: every variant that is built, and what each of them costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import CacheCase, check_kvcache
from cases import BUCKETS
from code_cases import CODES, quantised_arguments
from support import Target, emulator_options, lengths

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2._impl import backends

MMA_FLOP = 16 * 8 * 16
HEAD_DIM = 128
KEYS = 768  # whole tiles of every kernel, in 1, 2, 3 and 4 splits

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("modifier", [None, "alibi"])
@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_every_kernel(
    head_dim: int, seqlen_q: int, modifier: str | None, dtype: torch.dtype
) -> None:
    """With several CTAs at once, and as little shared memory as any device has."""
    case = CacheCase(
        head_dim,
        seqlen_q=seqlen_q,
        page_size=48,
        mask="window",
        modifier=modifier,
        leftpad=True,
        num_splits=2,
    )
    with emulator_options(f"device=sm86,ctas=3,async=random,seed={head_dim}"):
        check_kvcache(**case.arguments(Target("sm80-emulated", dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_every_kernel_of_codes(
    head_dim: int, seqlen_q: int, code: torch.dtype, dtype: torch.dtype
) -> None:
    case = CacheCase(
        head_dim, seqlen_q=seqlen_q, page_size=48, mask="window", leftpad=True, num_splits=2
    )
    arguments = quantised_arguments(case, Target("sm80-emulated", dtype), code, "row")
    with emulator_options(f"device=sm86,ctas=3,async=random,seed={head_dim}"):
        check_kvcache(**arguments)


@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
def test_pages_of_one_key(seqlen_q: int) -> None:
    case = CacheCase(seqlen_q=seqlen_q, page_size=1, num_splits=2)
    check_kvcache(**case.arguments(Target("sm80-emulated", torch.float16)))


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_one_key_outweighs_more_splits_than_a_warp_has_lanes(place: int) -> None:
    """By more than any ratio of two floats."""
    target = Target("sm80-emulated", torch.float16)
    arguments = {
        "q": target.tensor(1, 1, 1, 64),
        "k_cache": target.tensor(1, 40 * 128, 1, 64),
        "v_cache": target.tensor(1, 40 * 128, 1, 64),
    }
    arguments["k_cache"][:, place] = 40 * arguments["q"][:, 0]
    out, _ = check_kvcache(**arguments, num_splits=40)
    assert torch.equal(out[:, 0], arguments["v_cache"][:, place])


@pytest.mark.parametrize("num_splits", range(2, 10))
def test_nothing_past_the_last_split_is_read(num_splits: int) -> None:
    """Which ends where the memory of partial results does; eight are loaded at a time."""
    target = Target("sm80-emulated", torch.float16)
    keys = {name: target.tensor(1, 128 * num_splits, 1, 64) for name in ("k_cache", "v_cache")}
    check_kvcache(q=target.tensor(1, 1, 1, 64), **keys, num_splits=num_splits)


@pytest.mark.parametrize("seqlen_q", [5, 50], ids=["few", "many"])
@pytest.mark.parametrize("head_dim", [40, 64])
def test_rows_of_both_halves_of_a_tile(head_dim: int, seqlen_q: int) -> None:
    """A window shows each of them other keys."""
    case = CacheCase(
        head_dim, seqlen_q=seqlen_q, page_size=16, mask="window", leftpad=True, num_splits=3
    )
    check_kvcache(**case.arguments(Target("sm80-emulated", torch.float16)))


@pytest.mark.parametrize("seqlen_q", [5, 50], ids=["few", "many"])
def test_rows_that_see_no_key(seqlen_q: int) -> None:
    """Of a tile in which others see some, and of one in which none does."""
    target = Target("sm80-emulated", torch.float16)
    arguments = {
        "q": target.tensor(3, seqlen_q, 1, 64),
        "k_cache": target.tensor(3, 600, 1, 64),
        "v_cache": target.tensor(3, 600, 1, 64),
        "cache_seqlens": lengths(3, 0, 600),
    }
    check_kvcache(**arguments, causal=True, num_splits=2)


@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
def test_scores_that_outgrow_every_base(seqlen_q: int) -> None:
    """From the last key, where kernels start, to the first one."""
    target = Target("sm80-emulated", torch.float16)
    arguments = {
        "q": target.tensor(1, seqlen_q, 1, 64),
        "k_cache": target.tensor(1, 700, 1, 64) * torch.linspace(60, 0, 700).half()[:, None, None],
        "v_cache": target.tensor(1, 700, 1, 64),
    }
    check_kvcache(**arguments, num_splits=2)


@pytest.mark.parametrize(
    ("score", "dtype"),
    [(-3e38, torch.float16), (-3e38, torch.bfloat16), (3e38, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("seqlen_q", [2, 50], ids=["few", "many"])
def test_largest_scores_there_are(seqlen_q: int, score: float, dtype: torch.dtype) -> None:
    """Powers of two of that size do not fit into a float."""
    target = Target("sm80-emulated", dtype)
    scale = 2.0**100 if dtype is torch.float16 else 1.0
    q = torch.zeros(1, seqlen_q, 1, 64, dtype=dtype)
    k = torch.zeros(1, 300, 1, 64, dtype=dtype)
    q[..., 0] = 2.0**15
    k[..., 0] = score / 2.0**15 / scale
    k[:, ::2] /= 2
    check_kvcache(
        q=q, k_cache=k, v_cache=target.tensor(*k.shape), num_splits=2, softmax_scale=scale
    )


def problem(
    heads: int,
    heads_kv: int,
    seqlen_q: int = 1,
    page_size: int | None = None,
    head_dim: int = HEAD_DIM,
) -> Any:
    target = Target("sm80-emulated", torch.float16)
    shape = (1, KEYS) if page_size is None else (KEYS // page_size, page_size)
    arguments: dict[str, Any] = {
        "q": target.tensor(1, seqlen_q, heads, head_dim),
        "k_cache": target.tensor(*shape, heads_kv, head_dim),
        "v_cache": target.tensor(*shape, heads_kv, head_dim),
    }
    if page_size is not None:
        arguments["block_table"] = torch.randperm(shape[0]).int()[None]
    return arguments


def counted(*tensors: torch.Tensor, **arguments: Any) -> dict[str, dict[str, float]]:
    """What each kernel of a call costs, by name."""
    module = backends.load("sm80-emulated").module
    module.reset_counters()
    flash_attn_with_kvcache(*tensors, **arguments)
    kernels = {}
    for name in ("SplitKernel", "CombineKernel"):
        found = [c for kernel, c in module.counters_by_kernel().items() if name in kernel]
        if found:
            (kernels[name],) = found
    return kernels


@pytest.mark.parametrize("num_splits", [1, 2, 3])
@pytest.mark.parametrize("page_size", [None, 1, 16, 48])
@pytest.mark.parametrize(
    ("heads", "heads_kv", "seqlen_q"), [(2, 2, 1), (8, 2, 1), (16, 1, 1), (8, 2, 4), (8, 1, 40)]
)
def test_keys_are_read_once(
    heads: int, heads_kv: int, seqlen_q: int, page_size: int | None, num_splits: int
) -> None:
    """Whatever the group, the pages and the splits: the heads of a group share what is read."""
    arguments = problem(heads, heads_kv, seqlen_q, page_size)
    cost = counted(**arguments, num_splits=num_splits)["SplitKernel"]
    blocks = -(-heads // heads_kv * seqlen_q // 128)  # of rows: one, but for 320
    for name in ("k", "v"):
        num_bytes = arguments[f"{name}_cache"].nbytes
        assert cost[f"read.{name}.distinct_sectors"] * 32 == num_bytes
        assert cost[f"read.{name}.bytes"] == blocks * num_bytes
    assert cost["read.q.bytes"] == num_splits * arguments["q"].nbytes


@pytest.mark.parametrize("unit", ["sequence", "page_rows", "row"])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize(("heads", "heads_kv", "seqlen_q"), [(8, 8, 1), (16, 8, 1), (32, 8, 40)])
def test_codes_and_scales_are_read_once(
    heads: int, heads_kv: int, seqlen_q: int, page_size: int | None, unit: str
) -> None:
    arguments = problem(heads, heads_kv, seqlen_q, page_size, head_dim=64)
    for name in ("k", "v"):
        cache = arguments[f"{name}_cache"].to(torch.float8_e4m3fn)
        rows = {"sequence": (1,), "page_rows": (len(cache), 1), "row": cache.shape[:2]}[unit]
        arguments |= {f"{name}_cache": cache, f"{name}_descale": torch.ones(*rows, heads_kv)}
    cost = counted(**arguments, num_splits=2)["SplitKernel"]
    blocks = -(-heads // heads_kv * seqlen_q // 128)
    for name in ("k", "v"):
        cache, scales = arguments[f"{name}_cache"], arguments[f"{name}_descale"]
        assert cost[f"read.{name}.distinct_sectors"] * 32 == cache.nbytes
        assert cost[f"read.{name}.bytes"] == blocks * cache.nbytes
        assert cost[f"read.{name}_descale.distinct_sectors"] * 32 == scales.nbytes
        assert cost[f"read.{name}_descale.bytes"] == blocks * 4 * KEYS * heads_kv


@pytest.mark.parametrize(("seqlen_q", "rows"), [(1, 16), (32, 128)])
def test_cost_is_the_least_possible(seqlen_q: int, rows: int) -> None:
    """Tensor cores see `rows` rows; a key is read from shared memory by one warp, or by four."""
    cost = counted(**problem(4, 1, seqlen_q), num_splits=1)["SplitKernel"]
    assert cost["mma"] * MMA_FLOP == 2 * rows * KEYS * HEAD_DIM
    for unit in ("ldmatrix", "cp_async"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit


@pytest.mark.parametrize("num_splits", [2, 3, 6])
def test_partial_results_go_through_memory_once(num_splits: int) -> None:
    arguments = problem(8, 2)
    kernels = counted(**arguments, num_splits=num_splits)
    partials = num_splits * 8 * (HEAD_DIM + 2) * 4
    assert kernels["SplitKernel"]["write.workspace.bytes"] == partials
    assert kernels["CombineKernel"]["read.workspace.bytes"] == partials
    assert kernels["CombineKernel"]["write.out.bytes"] == arguments["q"].nbytes
    assert kernels["CombineKernel"]["ctas"] == 8


def test_empty_splits_cost_nothing() -> None:
    arguments = problem(8, 2)
    cost = counted(**arguments, num_splits=128)["SplitKernel"]
    tiles = KEYS // 128
    assert cost["write.workspace.bytes"] == 8 * tiles * (HEAD_DIM + 2) * 4
    assert cost["read.k.bytes"] == arguments["k_cache"].nbytes
    assert cost["ctas"] == 2 * tiles


def test_splits_of_a_full_device_cost_no_memory() -> None:
    """One CTA has all splits of a sequence, adds them up and finishes; nothing else is launched."""
    arguments = problem(8, 2)
    keys = {name: arguments[name].expand(120, -1, -1, -1) for name in ("k_cache", "v_cache")}
    held = torch.tensor([KEYS] + [1] * 119, dtype=torch.int32)
    kernels = counted(arguments["q"].expand(120, -1, -1, -1), **keys, cache_seqlens=held)
    assert list(kernels) == ["SplitKernel"]
    assert kernels["SplitKernel"]["ctas"] == 240
    assert "write.workspace.bytes" not in kernels["SplitKernel"]


def test_sharing_splits_stores_what_the_first_cta_did_not_add_up() -> None:
    arguments = problem(8, 2)
    keys = {
        name: arguments[name].repeat(1, 3, 1, 1).expand(30, -1, -1, -1)
        for name in ("k_cache", "v_cache")
    }
    held = torch.tensor([3 * KEYS] + [1] * 29, dtype=torch.int32)
    kernels = counted(arguments["q"].expand(30, -1, -1, -1), **keys, cache_seqlens=held)
    splits = 3 * KEYS // 128
    assert kernels["SplitKernel"]["ctas"] == 60 * 3
    stored = splits - splits // 3 + 1
    partials = stored * 8 * (HEAD_DIM + 2) * 4
    assert kernels["SplitKernel"]["write.workspace.bytes"] == partials
    assert kernels["CombineKernel"]["read.workspace.bytes"] == partials


def test_ctas_without_splits_read_nothing() -> None:
    """As many share a sequence as the longest one needs: of others, some are left without a split,
    between those that have one, too.
    """
    arguments = problem(8, 2, head_dim=64)
    held = torch.arange(1, 13, dtype=torch.int32) * 90
    keys = {
        name: arguments[name].repeat(1, 2, 1, 1).expand(len(held), -1, -1, -1)
        for name in ("k_cache", "v_cache")
    }
    query = arguments["q"].expand(len(held), -1, -1, -1)
    cost = counted(query, **keys, cache_seqlens=held)["SplitKernel"]
    for name in ("k", "v"):
        assert cost[f"read.{name}.bytes"] == int(held.sum()) * 2 * 64 * 2


@pytest.mark.parametrize("page_size", [None, 16])
def test_keys_past_the_end_are_not_read(page_size: int | None) -> None:
    cost = counted(**problem(8, 2, page_size=page_size), cache_seqlens=700, num_splits=2)
    for name in ("k", "v"):
        assert cost["SplitKernel"][f"read.{name}.bytes"] == 700 * 2 * HEAD_DIM * 2


def test_hidden_pages_are_not_read() -> None:
    arguments = problem(8, 2, page_size=16)
    cost = counted(**arguments, window_size=(100, 0), num_splits=1)["SplitKernel"]
    assert cost["read.k.bytes"] == 128 * 2 * HEAD_DIM * 2  # one tile

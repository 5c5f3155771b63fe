"""Keys wider than 512 columns over a KV cache in the emulator, and keys whose leading columns are
the values: multi-head latent attention in its absorbed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import CacheCase, bits, check_kvcache
from code_cases import quantised_arguments
from support import Target, cpu_tensors_on, emulator_options
from test_sm80_kernels import MMA_FLOP
from test_sm80_split import counted
from test_sm80_widths import DEVICES, NAME, TARGET

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import LatentAttention

SECTOR_BYTES = 32
APART = pytest.mark.parametrize("apart", [True, False], ids=["apart", "shared"])
# Values apart have the same kernels everywhere.
KERNELS = pytest.mark.parametrize(
    ("apart", "device"), [(True, "sm86"), (False, "sm80"), (False, "sm86")]
)
ROWS = pytest.mark.parametrize("seqlen_q", [2, 9], ids=["few", "many"])
# A whole bucket, and parts of it on both sides.
WIDTHS = pytest.mark.parametrize(("head_dim", "head_dim_v"), [(576, 512), (520, 200)])

pytestmark = pytest.mark.usefixtures("emulated")


def wide(seqlen_q: int, heads: int = 8, **other: Any) -> CacheCase:
    given: dict[str, Any] = {"page_size": 48, "head_dim": 576, "head_dim_v": 512} | other
    return CacheCase(heads=(heads, 1), seqlen_q=seqlen_q, **given)


def shared(arguments: dict[str, Any], given: bool = False) -> dict[str, Any]:
    """Those of a cache of keys that hold the values, to which k alone is appended, or k twice."""
    width = arguments["v_cache"].shape[-1]
    arguments["v_cache"] = arguments["k_cache"][..., :width]
    if "k" in arguments:
        arguments["v"] = arguments["k"][..., :width] if given else None
    return arguments


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("modifier", [None, "alibi"])
@ROWS
@KERNELS
def test_every_kernel(
    apart: bool, seqlen_q: int, modifier: str | None, dtype: torch.dtype, device: str
) -> None:
    """With several CTAs at once, under a random schedule and random copy completion."""
    case = wide(seqlen_q, modifier=modifier, mask="window", leftpad=True, num_splits=2)
    arguments = case.arguments(Target(NAME, dtype))
    with emulator_options(f"device={device},ctas=3,async=random,seed={seqlen_q}"):
        check_kvcache(**(arguments if apart else shared(arguments)))


@WIDTHS
@ROWS
@KERNELS
def test_widths(apart: bool, seqlen_q: int, head_dim: int, head_dim_v: int, device: str) -> None:
    """Of a dense cache."""
    case = wide(
        seqlen_q,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        page_size=None,
        batch_idx=True,
        modifier="softcap" if head_dim == 576 else "sink",
    )
    arguments = case.arguments(TARGET)
    with emulator_options(f"device={device}"):
        check_kvcache(**(arguments if apart else shared(arguments, given=True)))


@pytest.mark.parametrize(
    ("head_dim", "head_dim_v"), [(512, 512), (320, 256), (264, 8), (80, 64), (128, 128)]
)
@ROWS
def test_narrower_latents(seqlen_q: int, head_dim: int, head_dim_v: int) -> None:
    """Beyond 256 columns pages of them are read once; all are written once."""
    case = wide(seqlen_q, head_dim=head_dim, head_dim_v=head_dim_v, page_size=16)
    check_kvcache(**shared(case.arguments(TARGET)))


@DEVICES
@pytest.mark.parametrize("heads", [128, 64, 32, 16])
def test_groups(heads: int, device: str) -> None:
    """Of one latent head, with splits that are chosen."""
    case = wide(1, heads, page_size=64)
    with emulator_options(f"device={device},ctas=3,async=random,seed=2"):
        check_kvcache(**shared(case.arguments(TARGET)))


@KERNELS
def test_packed_queries(apart: bool, device: str) -> None:
    """Sequences with many rows, with none and with few."""
    case = wide(5, packed=True, more_new=2)
    arguments = case.arguments(TARGET)
    with emulator_options(f"device={device}"):
        check_kvcache(**(arguments if apart else shared(arguments)))


def test_paged_varlen() -> None:
    """Prefill through the function for packed sequences."""
    q, pages = TARGET.tensor(30, 16, 576), TARGET.tensor(8, 16, 1, 576)
    values = pages[..., :512]
    cu_q, cu_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 20, 30], [0, 50, 90]))
    tables = torch.tensor([[5, 1, 7, 0], [2, 6, 3, 4]], dtype=torch.int32)
    out: Any = flash_attn_varlen_func(
        q, pages, values, cu_q, cu_k, 20, 50, block_table=tables, causal=True
    )
    expected: Any = flash_attn_with_kvcache(
        q,
        pages,
        values,
        cache_seqlens=torch.tensor([50, 40], dtype=torch.int32),
        block_table=tables,
        cu_seqlens_q=cu_q,
        causal=True,
    )
    assert torch.equal(out, expected)


@pytest.mark.parametrize("code", [torch.float8_e4m3fn, torch.int8], ids=str)
@ROWS
@APART
def test_codes(apart: bool, seqlen_q: int, code: torch.dtype) -> None:
    case = wide(seqlen_q, num_splits=2)
    arguments = quantised_arguments(case, TARGET, code, "row")
    if not apart:
        arguments = shared(arguments) | {"v_descale": arguments["k_descale"]}
    with emulator_options("device=sm86,ctas=3,async=random,seed=5"):
        check_kvcache(**arguments)


@pytest.mark.parametrize("seqlen_q", [2, 9], ids=["few", "many"])
def test_scores_that_outgrow_every_base(seqlen_q: int) -> None:
    """From the last key, where kernels start, to the first one: pairs of warps exchange bases."""
    latents = TARGET.tensor(1, 300, 1, 576)
    latents[..., 512:] *= torch.linspace(60, 0, 300).to(latents.dtype)[:, None, None]
    arguments = {"q": TARGET.tensor(1, seqlen_q, 8, 576), "k_cache": latents}
    check_kvcache(**arguments, v_cache=latents[..., :512], num_splits=2)


@DEVICES
@pytest.mark.parametrize("heads", [16, 128])
def test_sequences_do_not_depend_on_company(heads: int, device: str) -> None:
    q, latents = TARGET.tensor(4, 1, heads, 576), TARGET.tensor(4, 300, 1, 576)
    held = torch.tensor([300, 280, 7, 300], dtype=torch.int32)
    with emulator_options(f"device={device}"):
        together = flash_attn_with_kvcache(q, latents, latents[..., :512], cache_seqlens=held)
        one = latents[1:2, :290]
        alone = flash_attn_with_kvcache(q[1:2], one, one[..., :512], cache_seqlens=held[1:2])
    assert torch.equal(together[1:2], alone)


@DEVICES
@ROWS
def test_every_run_gives_the_same(seqlen_q: int, device: str) -> None:
    q, latents = TARGET.tensor(1, seqlen_q, 8, 576), TARGET.tensor(1, 200, 1, 576)

    def result(seed: int) -> Any:
        with emulator_options(f"device={device},ctas=3,async=random,seed={seed}"):
            return flash_attn_with_kvcache(q, latents, latents[..., :512], num_splits=3)

    assert torch.equal(result(1), result(2))


# Device, queries of 16 heads, rows that tensor cores see, and how often they multiply scores.
COSTS = [("sm80", 1, 16, 4), ("sm86", 1, 16, 4), ("sm80", 8, 128, 1), ("sm86", 8, 128, 2)]


@pytest.mark.parametrize("page_size", [None, 16, 1])
@pytest.mark.parametrize(("device", "seqlen_q", "rows", "scores"), COSTS)
def test_latents_are_read_once(
    device: str, seqlen_q: int, rows: int, scores: int, page_size: int | None
) -> None:
    """By each block of rows, keys and values together."""
    keys = 128
    shape = (1, keys) if page_size is None else (keys // page_size, page_size)
    latents = TARGET.tensor(*shape, 1, 576)
    arguments: dict[str, Any] = {"q": TARGET.tensor(1, seqlen_q, 16, 576), "num_splits": 2}
    if page_size is not None:
        arguments["block_table"] = torch.randperm(shape[0]).int()[None]
    with emulator_options(f"device={device}"):
        kernels = counted(**arguments, k_cache=latents, v_cache=latents[..., :512])
    cost = kernels["SplitKernel"]
    blocks = {"sm80": rows // 64, "sm86": rows // 32}[device] if seqlen_q > 1 else 1
    assert cost["read.k.distinct_sectors"] * SECTOR_BYTES == latents.nbytes
    assert cost["read.k.bytes"] == blocks * latents.nbytes
    assert cost["read.v.bytes"] == 0
    assert cost["mma"] * MMA_FLOP == rows * keys * (576 * scores + 512)
    for unit in ("ldmatrix", "cp_async"):
        assert cost[f"{unit}.wavefronts"] == cost[f"{unit}.ideal_wavefronts"], unit


def test_an_append_writes_once() -> None:
    latents, k = torch.zeros(1, 64, 1, 576, dtype=TARGET.dtype), TARGET.tensor(1, 3, 1, 576)
    module = backends.load(NAME).module
    module.reset_counters()
    values = latents[..., :512]
    flash_attn_with_kvcache(TARGET.tensor(1, 3, 4, 576), latents, values, k, cache_seqlens=9)
    (cost,) = (c for name, c in module.counters_by_kernel().items() if "AppendKernel" in name)
    assert cost["write.bytes"] == k.nbytes
    assert cost["read.bytes"] == k.nbytes
    assert torch.equal(bits(latents[:, 9:12]), bits(k))
    assert not latents[:, :9].any()
    assert not latents[:, 12:].any()


def test_a_layer() -> None:
    """Over a cache of its latents it gives what it gives without."""
    torch.manual_seed(0)
    layer = LatentAttention(
        64,
        4,
        kv_lora_rank=512,
        qk_nope_head_dim=16,
        qk_rope_head_dim=64,
        v_head_dim=16,
        causal=True,
    ).to(TARGET.dtype)
    x = TARGET.tensor(9, 64)
    cache = PagedKVCache(1, 4, 4, 1, 576, TARGET.dtype, head_dim_v=512, shared_kv=True)
    sequence, rows = cache.allocate(), []
    with torch.inference_mode():
        for piece in x.split((6, 1, 2)):
            step = cache.append([sequence], len(piece))
            rows.append(layer(piece, cache=cache.layers[0], step=step))
        with cpu_tensors_on("cpu"):
            expected = layer(x[None])[0]
    torch.testing.assert_close(torch.cat(rows), expected, rtol=0.02, atol=0.02)

"""Prints times of one step of decoding over a cache of 8 bits beside one of bfloat16, on the CPU.

    python benchmarks/kv_codes.py [--batch N] [--seqlen N] [--heads N] [--heads-kv N] [--head-dim N]
                                  [--page-size N] [--scales sequence|token] [--cold-mib N]
                                  [--seconds N] [--threads N]

Every call reads the next of several layers, which no cache of the processor holds together, and
all caches take turns. "ratio" is the time over bfloat16 by the time over this cache.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.bench import race, timing
from flash_attn2.reference import quantised, row_scales

_DTYPES = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lengths = torch.full((args.batch,), args.seqlen, dtype=torch.int32)
    step: dict[str, Any] = {"cache_seqlens": lengths}
    rows = (args.batch, args.seqlen)
    if args.page_size:
        pages = -(-args.seqlen // args.page_size)
        rows = (args.batch * pages, args.page_size)
        step["block_table"] = torch.randperm(rows[0], dtype=torch.int32).view(-1, pages)
    q = torch.randn(args.batch, 1, args.heads, args.head_dim, dtype=torch.bfloat16)
    k, v = (torch.randn(*rows, args.heads_kv, args.head_dim).bfloat16() for _ in range(2))
    layers = max(1, (args.cold_mib << 20) // (k.nbytes + v.nbytes))
    calls = {
        str(dtype): _call(q, [_layer(k, v, dtype, args) for _ in range(layers)], step)
        for dtype in _DTYPES
    }
    clock = timing.CpuClock()
    entries = {name: race.enter(call, clock) for name, call in calls.items()}
    samples = race.run(entries, clock, timing.Budget(args.seconds, 5, 200))
    first = samples[str(torch.bfloat16)]
    print("| cache | ms | ratio |\n|---|---:|---:|")
    for name, times in samples.items():
        ratio = timing.compare(times, first)
        print(
            f"| {name.removeprefix('torch.')} | {1e3 * timing.median(times):.2f} "
            f"| {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--heads-kv", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=0, help="0: none")
    parser.add_argument("--scales", choices=("sequence", "token"), default="token")
    parser.add_argument("--cold-mib", type=int, default=256, help="of all layers in bfloat16")
    parser.add_argument("--seconds", type=float, default=20, help="for all caches together")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def _layer(k: Tensor, v: Tensor, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Tensor]:
    """The arguments that are a cache of `dtype`."""
    if dtype is torch.bfloat16:
        return {"k_cache": k.clone(), "v_cache": v.clone()}
    layer = {}
    for name, x in (("k", k), ("v", v)):
        scales = row_scales(x, dtype)
        if args.scales == "sequence":
            scales = scales.amax((0, 1)).expand(args.batch, -1).contiguous()
        of_rows = scales if args.scales == "token" else scales[0].expand(x.shape[:-1])
        layer |= {
            f"{name}_cache": quantised(x, of_rows[..., None], dtype),
            f"{name}_descale": scales,
        }
    return layer


def _call(q: Tensor, layers: list[dict[str, Tensor]], step: dict[str, Any]) -> Callable[[], Any]:
    turns = itertools.cycle(layers)
    return lambda: flash_attn_with_kvcache(q, **next(turns), **step)


if __name__ == "__main__":
    main()

"""Prints how long masks take to build and what memory it takes, beside FlexAttention's.

    python benchmarks/mask_build.py [--flex-seqlen N] [--repeats N]

On one thread of the CPU. Memory is the highest resident set of the process during a build, over
the one before it and the tensors of the result; on Linux with glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from flash_attn2 import masks
from flash_attn2.masks import BlockMask, Pattern

WINDOW, GLOBAL = 256, 64
Build = Callable[[], Any]


def patterns(seqlen: int) -> dict[str, Pattern]:
    ids = torch.arange(seqlen, dtype=torch.int32) // 700
    return {
        "BigBird": masks.bigbird(global_tokens=GLOBAL, window=WINDOW, random_blocks=3),
        "Longformer": masks.longformer(window=WINDOW),
        "causal documents": masks.documents(ids) & masks.causal(),
        "outside of documents": ~masks.documents(ids) & masks.window(WINDOW, WINDOW),
        "causal": masks.causal(),
    }


def global_and_window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q < GLOBAL) | (k < GLOBAL) | ((q - k).abs() <= WINDOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flex-seqlen", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)

    print("| mask | tokens | listed blocks | different tiles | build, ms | memory beyond it |")
    print("|---|---:|---:|---:|---:|---:|")
    for seqlen in (65536, 1 << 20):
        for name, pattern in patterns(seqlen).items():
            if seqlen == 65536 or name != "causal":  # of which the result alone is a gigabyte
                print(row(name, seqlen, lambda p=pattern, n=seqlen: p.build(n), args.repeats))
    print()

    print(f"The same mask of {args.flex_seqlen} tokens, 64 global ones and a window:")
    pattern = masks.longformer(window=WINDOW, global_tokens=GLOBAL)
    function = masks.function(global_and_window)
    contenders = {
        "pattern.build": lambda: pattern.build(args.flex_seqlen),
        "function.build": lambda: function.build(args.flex_seqlen),
        "torch's create_block_mask, blocks of 64": lambda: flex(args.flex_seqlen, 64),
        "torch's create_block_mask, blocks of 128": lambda: flex(args.flex_seqlen, 128),
    }
    times = interleaved(contenders, max(1, args.repeats // 2))
    memory = {name: extra_memory(build)[1] for name, build in contenders.items()}
    print("| | build, ms | memory beyond it |")
    print("|---|---:|---:|")
    for name in contenders:
        print(f"| {name} | {median_ms(times[name]):.2f} | {memory[name] / 2**20:.1f} MB |")


def flex(seqlen: int, block: int) -> Any:
    return create_block_mask(
        global_and_window, None, None, seqlen, seqlen, device="cpu", BLOCK_SIZE=block
    )


def row(name: str, seqlen: int, build: Build, repeats: int) -> str:
    mask, memory = extra_memory(build)
    times = interleaved({name: build}, repeats)[name]
    counts = f"{mask.cols.numel()} | {mask.bits.shape[0] - 1}"
    return f"| {name} | {seqlen} | {counts} | {median_ms(times):.2f} | {memory / 2**20:.1f} MB |"


def interleaved(contenders: dict[str, Build], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(repeats + 1):
        for name, build in contenders.items():
            start = time.perf_counter()
            build()
            if i > 0:
                times[name].append(time.perf_counter() - start)
    return times


def median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


def extra_memory(build: Build) -> tuple[Any, int]:
    """What it builds, and the bytes that were resident beyond the result at the worst."""
    build()
    ctypes.CDLL(None).malloc_trim(0)  # what is free and kept for later would hide what is needed
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest one so far counts no more
    result = build()
    size = sum(t.untyped_storage().nbytes() for t in tensors(result))
    return result, max(0, resident("VmHWM") - before - size)


def resident(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if name in x)
    return int(line.split()[1]) * 1024


def tensors(mask: Any) -> Iterator[Tensor]:
    if isinstance(mask, BlockMask):
        yield from (mask.row_offsets, mask.cols, mask.tiles, mask.bits)
    else:
        yield from (x for x in mask.as_tuple() if isinstance(x, Tensor))


if __name__ == "__main__":
    main()

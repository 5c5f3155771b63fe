"""Trains a small encoder on long documents, with block-sparse attention beside dense.

Both models read the same bytes of Python's standard library, of which some are hidden, and learn to
tell them. In one, every byte attends to all others; in the other to a window, to the first bytes
of the document, which attend to everything, and to random blocks (BigBird, Zaheer et al. 2020).

    python examples/long_documents.py                    # 4k, 8k and 16k tokens; then 64k, forward
    python examples/long_documents.py --seqlens 4096 --steps 100

Leaves long-documents.png and long-documents.json. It needs `pip install "flash_attn2[examples]"`,
for rich and matplotlib.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import extras  # noqa: F401
import torch
import torch.nn.functional as F  # noqa: N812
from common import DTYPES, fastest_dtype, mebibytes, standard_library
from gpt import Block, Config
from gpt_report import write_json
from long_documents_plot import plot
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import Training

from flash_attn2 import masks
from flash_attn2.masks import BlockMask
from flash_attn2.nn import Attention, RotaryEmbedding

HIDDEN = 256  # the token in place of a byte that is to be told
HIDDEN_SHARE = 0.15
VALIDATION_SHARE = 20  # every 20th file
VALIDATION_BATCHES = 4
PATTERN = masks.bigbird(global_tokens=64, window=192, random_blocks=3)


class Encoder(nn.Module):
    """Logits of the bytes at some positions of (batch, seqlen) tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        rotary = RotaryEmbedding(config.d_model // config.num_heads)
        self.embedding = nn.Embedding(HIDDEN + 1, config.d_model)
        self.blocks = nn.ModuleList(
            Block(config, rotary, Attention, causal=False) for _ in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.d_model)
        self.head = nn.Linear(config.d_model, HIDDEN, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, block_mask: BlockMask | None) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, block_mask=block_mask)
        return self.head(self.norm(x[positions])).float()


class Batch:
    """Documents of one length, of which a share of the bytes is hidden."""

    def __init__(self, text: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.positions = torch.rand(text.shape, generator=generator) < HIDDEN_SHARE
        self.targets = text[self.positions]
        self.tokens = text.masked_fill(self.positions, HIDDEN)

    def to(self, device: str) -> Batch:
        for name in ("positions", "targets", "tokens"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def batches(files: Sequence[bytes], tokens: int, seqlen: int, seed: int) -> Iterator[Batch]:
    """Endlessly: `tokens` bytes each, cut into documents of `seqlen`."""
    text = torch.frombuffer(bytearray().join(files), dtype=torch.uint8).long()
    pieces = text[: len(text) // seqlen * seqlen].view(-1, seqlen)
    draw = random.Random(seed)
    while True:
        rows = draw.sample(range(len(pieces)), tokens // seqlen)
        yield Batch(pieces[rows], draw.randrange(2**31))


class EncoderTraining(Training):
    """At one length, dense without a mask."""

    def __init__(self, args: argparse.Namespace, mask: BlockMask | None) -> None:
        torch.manual_seed(args.seed)
        model = Encoder(model_config(args)).to(args.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
        super().__init__(model, optimizer, args.device, args.dtype)
        self.mask = mask

    def loss(self, batch: Batch) -> Tensor:
        with self.autocast():
            logits = self.model(batch.tokens, batch.positions, self.mask)
        return F.cross_entropy(logits, batch.targets)


def model_config(args: argparse.Namespace) -> Config:
    return Config(args.d_model, args.layers, args.heads, args.heads)


def built(seqlen: int, device: str) -> tuple[BlockMask, float]:
    start = time.perf_counter()
    mask = PATTERN.build(seqlen, device=device)
    return mask, time.perf_counter() - start


def train(args: argparse.Namespace, seqlen: int, console: Console) -> dict[str, Any]:
    """Both models, in turns on the same batches; returns what was measured of each."""
    sources = list(standard_library().values())
    held_out = sources[::VALIDATION_SHARE]
    del sources[::VALIDATION_SHARE]
    mask, seconds = built(seqlen, args.device)
    console.print(
        f"\n{seqlen:,} tokens: {mask.density:.1%} of the pairs, listed in {seconds * 1e3:.2f} ms"
    )
    runs = {"block-sparse": EncoderTraining(args, mask), "dense": EncoderTraining(args, None)}
    stream = batches(sources, args.tokens, seqlen, args.seed)
    for step in range(1, args.steps + 1):
        batch = next(stream).to(args.device)
        for run in runs.values():
            run.step(batch)
        if step % max(1, args.steps // 5) == 0:
            losses = ", ".join(f"{name} {run.losses[-1]:.3f}" for name, run in runs.items())
            console.print(f"  step {step}: loss {losses}", highlight=False)
    stream = batches(held_out, args.tokens, seqlen, 0)
    validation = [next(stream).to(args.device) for _ in range(VALIDATION_BATCHES)]
    return {
        name: {
            "density": 1.0 if run.mask is None else run.mask.density,
            "loss": run.losses,
            "seconds": run.seconds,
            "tokens_per_second": args.tokens / statistics.median(run.seconds),
            "validation_loss": run.validation_loss(validation),
            "peak_bytes": run.peak_memory(validation[0]),
        }
        for name, run in runs.items()
    }


@torch.no_grad()
def read_long(args: argparse.Namespace, console: Console) -> dict[str, float]:
    """Seconds of one forward pass over a single long document."""
    text = b"".join(standard_library().values())[: args.longest]
    batch = Batch(torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None], args.seed)
    mask, _ = built(args.longest, args.device)
    batch.to(args.device)
    seconds = {}
    for name, of_run in {"block-sparse": mask, "dense": None}.items():
        run = EncoderTraining(args, of_run)
        start = time.perf_counter()
        run.loss(batch).item()
        seconds[name] = time.perf_counter() - start
    ratio = seconds["dense"] / seconds["block-sparse"]
    console.print(
        f"\nOne document of {args.longest:,} tokens, forward: {seconds['block-sparse']:.2f} s "
        f"block-sparse ({mask.density:.1%} of the pairs), {seconds['dense']:.2f} s dense, "
        f"{ratio:.1f} times as long"
    )
    return seconds


def print_table(results: dict[str, Any], console: Console) -> None:
    table = Table(box=box.HORIZONTALS)
    for header in ("tokens", "attention", "valid. loss", "tokens/s", "speed-up", "memory"):
        table.add_column(header, justify="left" if header == "attention" else "right")
    for seqlen, runs in results.items():
        for name, run in runs.items():
            ratio = runs["block-sparse"]["tokens_per_second"] / run["tokens_per_second"]
            table.add_row(
                seqlen,
                name,
                f"{run['validation_loss']:.3f}",
                f"{run['tokens_per_second']:,.0f}",
                "" if name == "block-sparse" else f"{ratio:.2f}x",
                mebibytes(run["peak_bytes"]),
            )
    console.print(table)
    console.print("speed-up: of block-sparse over dense. memory: peak of a step.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seqlens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--longest", type=int, default=65536, help="read once at the end; 0: not")
    parser.add_argument("--steps", type=int, default=40, help="of each length")
    parser.add_argument("--tokens", type=int, help="of a batch; default: the longest of --seqlens")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default=device)
    parser.add_argument("--dtype", choices=DTYPES, help="default: the fastest of the device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(), help="directory for the results")
    args = parser.parse_args(arguments)
    args.tokens = args.tokens or max(args.seqlens)
    if any(seqlen < 1 or args.tokens % seqlen for seqlen in args.seqlens):
        parser.error(f"--seqlens must divide --tokens, {args.tokens}")
    args.dtype = args.dtype or fastest_dtype(args.device)
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    console = Console()
    results = {str(seqlen): train(args, seqlen, console) for seqlen in args.seqlens}
    print_table(results, console)
    record = {
        "options": {k: str(v) if isinstance(v, os.PathLike) else v for k, v in vars(args).items()},
        "config": asdict(model_config(args)),
        "longest_seconds": read_long(args, console) if args.longest else {},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "long-documents.json", record, results)
    plot(args.output / "long-documents.png", record, results)
    return results


if __name__ == "__main__":
    main()

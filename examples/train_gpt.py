"""Trains a small GPT on the bytes of Python's standard library.

A document is a piece of a file; a batch holds documents packed one after another, and none attends
to another. Attention is flash_attn2's, or with the same weights PyTorch's SDPA or softmax(Q K^T) V
written out; both of those go document by document (for SDPA, one call with a block-diagonal mask
takes five times as long on a CPU).

    python examples/train_gpt.py                    # flash_attn2
    python examples/train_gpt.py --attention sdpa
    python examples/train_gpt.py --compare          # all three, in turns: table, plot, raw JSON
    python examples/train_gpt.py --save gpt.pt      # for GPT.load of gpt.py

It needs `pip install "flash_attn2[examples]"`, for rich and matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import extras  # noqa: F401
import torch
import torch.nn.functional as F  # noqa: N812
from common import DTYPES, fastest_dtype, standard_library
from gpt import GPT, Config
from gpt_report import plot, print_table, write_json
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from training import Training

from flash_attn2.nn import Attention

VALIDATION_SHARE = 20  # every 20th file
VALIDATION_BATCHES = 8
_PATHS = ("output", "save")
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0}  # bfloat16, dense


@lru_cache(maxsize=1)
def lengths_of(cu_seqlens: Tensor) -> list[int]:
    """The sequence lengths; read from the device once per batch, not in every layer."""
    return cu_seqlens.diff().tolist()


class DocumentAttention(Attention):
    """`Attention` with the same parameters, document by document."""

    def forward(self, x: Tensor, *, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        del max_seqlen
        qkv = self.project(x, cu_seqlens=cu_seqlens)
        heads = [x.transpose(0, 1).split(lengths_of(cu_seqlens), 1) for x in qkv]
        documents = zip(*heads, strict=True)
        out = torch.cat([self.attend(q[None], k[None], v[None])[0] for q, k, v in documents], 1)
        return self.out_proj(out.transpose(0, 1).flatten(-2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of (1, heads, seqlen, head_dim)."""
        raise NotImplementedError


class SdpaAttention(DocumentAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = self.num_heads != self.num_heads_kv
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


class StandardAttention(DocumentAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group, seqlen = self.num_heads // self.num_heads_kv, q.shape[2]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        hidden = torch.ones(seqlen, seqlen, dtype=torch.bool, device=q.device).triu(1)
        scores = (q * self.head_dim**-0.5) @ k.mT
        return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


ATTENTION = {"flash_attn2": Attention, "sdpa": SdpaAttention, "standard": StandardAttention}


@dataclass(frozen=True)
class Batch:
    """Packed documents: `targets` is the byte after each of `tokens`."""

    tokens: Tensor  # int64 (total,)
    targets: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    squares: int  # sum of the squared lengths

    @staticmethod
    def pack(documents: Sequence[bytes], device: str) -> Batch:
        lengths = [len(document) - 1 for document in documents]
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)

        def join(parts: Iterator[bytes]) -> Tensor:
            return torch.frombuffer(bytearray().join(parts), dtype=torch.uint8).long().to(device)

        tokens = join(document[:-1] for document in documents)
        targets = join(document[1:] for document in documents)
        squares = sum(length**2 for length in lengths)
        return Batch(tokens, targets, cu_seqlens.to(device), max(lengths), squares)


def batches(files: Sequence[bytes], total: int, longest: int, device: str) -> Iterator[Batch]:
    """Endlessly, packs of `total` bytes, of files that are cut into documents of `longest`."""
    places = [(file, start) for file in files for start in range(0, len(file) - 1, longest)]
    documents: list[bytes] = []
    room = total
    for epoch in itertools.count():
        random.Random(epoch).shuffle(places)
        for file, start in places:
            # A document and the byte after it; the last of a batch ends where that does.
            documents.append(file[start : start + min(longest, room) + 1])
            room -= len(documents[-1]) - 1
            if room == 0:
                yield Batch.pack(documents, device)
                documents, room = [], total


class GptTraining(Training):
    model: GPT

    def __init__(self, args: argparse.Namespace, config: Config, attention: str) -> None:
        torch.manual_seed(args.seed)
        model = GPT(config, ATTENTION[attention]).to(args.device)
        optimizer = torch.optim.AdamW(
            model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        super().__init__(model, optimizer, args.device, args.dtype)

    def loss(self, batch: Batch) -> Tensor:
        with self.autocast():
            logits = self.model(
                batch.tokens, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen
            )
        return F.cross_entropy(logits, batch.targets)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


def train_flops(model: GPT, batch: Batch) -> float:
    """Of forward and backward, by the formula of the FlashAttention-2 paper (section 4.2):
    6 * tokens * parameters + 12 * layers * d_model * seqlen^2 for each sequence.

    As there, the second term is not halved for the causal mask.
    """
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attention = 12 * config.num_layers * config.d_model * batch.squares
    return 6.0 * batch.tokens.numel() * parameters + attention


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    args: argparse.Namespace, runs: dict[str, GptTraining], console: Console
) -> dict[str, Any]:
    """Trains all of `runs` in turns on the same batches; returns what was measured of each."""
    sources = list(standard_library().values())
    held_out = sources[::VALIDATION_SHARE]
    del sources[::VALIDATION_SHARE]
    stream = batches(sources, args.tokens, args.max_document, args.device)
    console.print(f"Training on {sum(map(len, sources)) / 1e6:.1f} MB in {len(sources)} files")
    console.print("\nLoss in nats per byte, and tokens (bytes) per second:\n")
    console.print(" step   " + "   ".join(f"{name:<18}" for name in runs))
    columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn())
    flops = []
    names = list(runs)
    with Progress(*columns, console=console, transient=True) as progress:
        for step in progress.track(range(args.steps)):
            batch = next(stream)
            rate = learning_rate(args.lr, step, args.steps)
            for name in names:
                runs[name].set_learning_rate(rate)
                runs[name].step(batch)
            names.append(names.pop(0))
            flops.append(train_flops(runs[names[0]].model, batch))
            if (step + 1) % max(1, args.steps // 10) == 0:
                progress.console.print(_progress_line(step + 1, args.tokens, runs))
    stream = batches(held_out, args.tokens, args.max_document, args.device)
    validation = list(itertools.islice(stream, VALIDATION_BATCHES))
    results = {}
    for name, run in runs.items():
        typical = statistics.median(run.seconds[1:])  # threads and libraries start in the first
        results[name] = {
            "loss": run.losses,
            "seconds": run.seconds,
            "tokens_per_second": args.tokens / typical,
            "flops_per_second": statistics.fmean(flops) / typical,
            "validation_loss": run.validation_loss(validation),
            "peak_bytes": run.peak_memory(validation[0]),
        }
    return results


def _progress_line(step: int, tokens: int, runs: dict[str, GptTraining]) -> str:
    columns = [f"{run.losses[-1]:.4f} {tokens / run.seconds[-1]:>9,.0f}/s" for run in runs.values()]
    return f"{step:>5}   " + "   ".join(columns)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--attention", choices=ATTENTION, default="flash_attn2")
    which.add_argument("--compare", action="store_true", help="train with all three, in turns")
    length = parser.add_argument_group("length")
    length.add_argument("--steps", type=int, default=100)
    length.add_argument("--tokens", type=int, default=4096, help="bytes per step")
    length.add_argument("--max-document", type=int, default=2048, help="cut documents to so many")
    length.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    length.add_argument("--seed", type=int, default=0)
    model = parser.add_argument_group("model")
    model.add_argument("--d-model", type=int, default=Config.d_model)
    model.add_argument("--layers", type=int, default=Config.num_layers)
    model.add_argument("--heads", type=int, default=Config.num_heads)
    model.add_argument("--heads-kv", type=int, default=Config.num_heads_kv)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    machine.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 where that is fast")
    machine.add_argument("--threads", type=int, help="CPU threads")
    machine.add_argument(
        "--peak-tflops", type=float, help="of the device, for MFU; known for A100 and H100"
    )
    where = parser.add_argument_group("results")
    where.add_argument(
        "--output",
        type=Path,
        default=Path("bench-results"),
        help="folder for what --compare writes (default: %(default)s)",
    )
    where.add_argument("--save", type=Path, metavar="FILE", help="write the trained model")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or fastest_dtype(args.device)
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    if args.peak_tflops is None and args.device == "cuda":
        name = torch.cuda.get_device_name()
        args.peak_tflops = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    load_average = round(os.getloadavg()[0], 2)
    console = Console()
    config = Config(args.d_model, args.layers, args.heads, args.heads_kv)
    names = list(ATTENTION) if args.compare else [args.attention]
    runs = {name: GptTraining(args, config, name) for name in names}
    model = runs[names[0]].model
    console.print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {args.dtype}, "
        f"{args.tokens} tokens a step in documents of at most {args.max_document}"
    )
    results = train(args, runs, console)
    print_table(results, args.peak_tflops, console)
    if args.compare:
        args.output.mkdir(parents=True, exist_ok=True)
        options = {key: value for key, value in vars(args).items() if key not in _PATHS}
        record = {"load_average": load_average, "options": options, "config": asdict(config)}
        write_json(args.output / "train-gpt.json", record, results)
        plot(args.output / "train-gpt.png", record, results)
        console.print(f"Wrote train-gpt.json and train-gpt.png to {args.output}")
    if args.save:
        model.save(args.save)
        console.print(f"Wrote {args.save}")
    return results


if __name__ == "__main__":
    main()

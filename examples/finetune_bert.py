"""Fine-tunes a BERT-style encoder twice, on padded and on packed batches, with the same result.

The task: which package of Python's standard library does a snippet come from? Snippets are from 16
to 1024 tokens long, so that a batch padded to its longest snippet is mostly padding. The padded
model is the usual one, PyTorch's SDPA with a mask of the keys; the packed one drops the padding
with `unpad_input` before the first layer and attends with flash_attn2. Both start from the same
weights, see the same batches, and take turns.

    python examples/finetune_bert.py

There is nothing to download, so the encoder starts from random weights rather than pretrained
ones. It needs `pip install "flash_attn2[examples]"`, for rich.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import extras  # noqa: F401
import torch
import torch.nn.functional as F  # noqa: N812
from common import DTYPES, fastest_dtype, mebibytes, peak_memory, standard_library
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from flash_attn2 import pad_input, unpad_input
from flash_attn2.nn import Attention

NUM_CLASSES = 8
SHORTEST, LONGEST = 16, 1024  # tokens
SHORTEST_MODULE = 1000  # bytes
PAD, CLS, FIRST_WORD = 0, 1, 2
VOCABULARY = 4096  # words share numbers by hash
_WORD = re.compile(rb"\w+|[^\w\s]")


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # int64 (batch, seqlen), a CLS token first, PAD at the end
    labels: Tensor  # int64 (batch,)

    @property
    def mask(self) -> Tensor:
        """bool (batch, seqlen), true at tokens."""
        return self.tokens != PAD


class Snippets:
    """Random snippets of the packages with the most modules, of log-uniform length."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        packages: dict[str, list[bytes]] = {}
        for name, source in standard_library().items():
            package, _, module = name.partition("/")
            if module and len(source) >= SHORTEST_MODULE:
                packages.setdefault(package, []).append(source)
        self.names = sorted(packages, key=lambda name: (-len(packages[name]), name))[:NUM_CLASSES]
        self._modules = [packages[name] for name in self.names]

    def batch(self, size: int, device: str) -> Batch:
        labels = [self._random.randrange(NUM_CLASSES) for _ in range(size)]
        rows = [torch.tensor([CLS, *self._snippet(label)]) for label in labels]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        return Batch(tokens.to(device), torch.tensor(labels, device=device))

    def _snippet(self, label: int) -> list[int]:
        words = tokenize(self._random.choice(self._modules[label]))
        length = int(SHORTEST * (LONGEST / SHORTEST) ** self._random.random())
        start = self._random.randrange(max(1, len(words) - length))
        return words[start : start + length - 1]


@cache
def tokenize(source: bytes) -> list[int]:
    """Words and punctuation marks, by number."""
    words = _WORD.findall(source)
    return [FIRST_WORD + zlib.crc32(word) % (VOCABULARY - FIRST_WORD) for word in words]


class MaskedAttention(Attention):
    """`Attention` with the same parameters, of a padded batch, by SDPA with a mask of the keys."""

    def forward(self, x: Tensor, *, key_mask: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.project(x))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask[:, None, None])
        return self.out_proj(out.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Attention and MLP, each followed by a LayerNorm, as in BERT."""

    def __init__(self, d_model: int, num_heads: int, attention: type[Attention]) -> None:
        super().__init__()
        self.attention = attention(d_model, num_heads, bias=True)
        self.attention_norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.mlp_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, **sequences: Any) -> Tensor:
        x = self.attention_norm(x + self.attention(x, **sequences))
        return self.mlp_norm(x + self.mlp(x))


class Encoder(nn.Module):
    """Bidirectional, with learned positions; the state of the CLS token gives the class."""

    attention: type[Attention]

    def __init__(self, d_model: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, d_model)
        self.positions = nn.Embedding(LONGEST, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.layers = nn.ModuleList(
            Layer(d_model, num_heads, self.attention) for _ in range(num_layers)
        )
        self.classifier = nn.Linear(d_model, NUM_CLASSES)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.norm(self.words(tokens) + self.positions(positions))


class PaddedEncoder(Encoder):
    attention = MaskedAttention

    def states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(batch, seqlen, d_model)."""
        x = self.embed(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x, key_mask=mask)
        return x

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.classifier(self.states(tokens, mask)[:, 0])


class PackedEncoder(Encoder):
    attention = Attention

    def states(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(total, d_model); the places of its rows in the padded batch; where sequences start."""
        packed, indices, cu_seqlens, max_seqlen, _ = unpad_input(tokens, mask)
        x = self.embed(packed, indices % tokens.shape[1])
        for layer in self.layers:
            x = layer(x, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return x, indices, cu_seqlens[:-1]

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x, _, starts = self.states(tokens, mask)
        return self.classifier(x[starts])


ENCODERS: dict[str, type[Encoder]] = {"padded": PaddedEncoder, "packed": PackedEncoder}


class Training:
    """One encoder, its optimizer, and what was measured."""

    def __init__(self, args: argparse.Namespace, encoder: type[Encoder]) -> None:
        torch.manual_seed(args.seed)
        self.model = encoder(args.d_model, args.layers, args.heads).to(args.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, fused=True)
        self.device: str = args.device
        self.dtype = DTYPES[args.dtype]
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def logits(self, batch: Batch) -> Tensor:
        with self.autocast():
            return self.model(batch.tokens, batch.mask).float()

    def step(self, batch: Batch) -> None:
        start = time.perf_counter()
        loss = F.cross_entropy(self.logits(batch), batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())  # waits for the device
        self.seconds.append(time.perf_counter() - start)

    def milliseconds(self) -> float:
        """Of a typical step; threads and libraries start in the first."""
        return statistics.median(self.seconds[1:]) * 1e3

    def peak_memory(self, batch: Batch) -> int:
        """Bytes of activations, gradients and workspaces."""

        def run() -> None:
            F.cross_entropy(self.logits(batch), batch.labels).backward()

        size = peak_memory(run, self.device)
        self.optimizer.zero_grad()
        return size

    @torch.no_grad()
    def accuracy(self, batches: Sequence[Batch]) -> float:
        right = [
            (self.logits(batch).argmax(-1) == batch.labels).float().mean() for batch in batches
        ]
        return statistics.fmean(map(float, right))


@torch.no_grad()
def state_difference(padded: Training, packed: Training, batch: Batch) -> float:
    """Largest difference between the encoders' states of any token."""
    with padded.autocast():
        expected = padded.model.states(batch.tokens, batch.mask) * batch.mask[..., None]
        states, indices, _ = packed.model.states(batch.tokens, batch.mask)
    return (pad_input(states, indices, *batch.tokens.shape) - expected).abs().max().item()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32, help="snippets per step")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 where that is fast")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or fastest_dtype(args.device)
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def train(
    args: argparse.Namespace, runs: dict[str, Training], snippets: Snippets, console: Console
) -> float:
    """Trains all of `runs` in turns; returns the share of the batches that is not padding."""
    tokens = places = 0
    names = list(runs)
    with Progress(console=console, transient=True) as progress:
        for step in progress.track(range(args.steps)):
            batch = snippets.batch(args.batch, args.device)
            tokens, places = tokens + int(batch.mask.sum()), places + batch.tokens.numel()
            for name in names:
                runs[name].step(batch)
            names.reverse()
            if (step + 1) % max(1, args.steps // 10) == 0:
                losses = ", ".join(f"{name} {run.losses[-1]:.4f}" for name, run in runs.items())
                progress.console.print(f"step {step + 1:4}: loss {losses}")
    return tokens / places


def print_table(runs: dict[str, Training], test: Sequence[Batch], console: Console) -> None:
    table = Table(box=box.HORIZONTALS)
    for header in ("", "loss", "accuracy", "ms per step", "peak memory"):
        table.add_column(header, justify="right" if header else "left")
    for name, run in runs.items():
        table.add_row(
            name,
            f"{run.losses[-1]:.4f}",
            f"{run.accuracy(test):.1%}",
            f"{run.milliseconds():,.0f}",
            mebibytes(run.peak_memory(test[0])),
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> dict[str, Training]:
    args = parse(argv)
    console = Console()
    snippets = Snippets(args.seed)
    runs = {name: Training(args, encoder) for name, encoder in ENCODERS.items()}
    padded, packed = runs["padded"], runs["packed"]
    console.print(f"{args.dtype}; packages: {', '.join(snippets.names)}")
    difference = state_difference(padded, packed, snippets.batch(args.batch, args.device))
    console.print(f"Before training, states of any token differ by at most {difference:.1e}")
    share = train(args, runs, snippets, console)
    print_table(runs, [snippets.batch(args.batch, args.device) for _ in range(4)], console)
    largest = max(abs(a - b) for a, b in zip(padded.losses, packed.losses, strict=True))
    console.print(
        f"Losses differ by at most {largest:.1e}; packed is "
        f"{padded.milliseconds() / packed.milliseconds():.1f}x as fast. "
        f"{share:.0%} of the padded batches are tokens."
    )
    return runs


if __name__ == "__main__":
    main()

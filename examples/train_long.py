"""Trains a small GPT on sequences that lie on several ranks, beside FSDP2 or DDP.

    torchrun --nproc-per-node 4 examples/train_long.py               # 16k tokens, FSDP2
    torchrun --nproc-per-node 4 examples/train_long.py --parameters ddp --scheme heads
    torchrun --nproc-per-node 4 examples/train_long.py --compare     # and one process with the same

A plan deals out the tokens of each sequence; all of the model but attention works on a rank's own.
--compare trains in one process, too, after the others, and writes train-long.json and
train-long.png. Ranks are processes on CPUs, by gloo, with one thread each: they show that results,
bytes and memory are right, and nothing of how speed scales.

The loss is the mean over all tokens of the sequence, and FSDP2 and DDP average gradients over the
ranks. So each rank's loss is `ranks` times its share of that mean, the sum over its own tokens by
the number of all: the average of what ranks find is the gradient of the whole.

It needs `pip install "flash_attn2[examples]"`, for rich and matplotlib.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import extras  # noqa: F401
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from common import mebibytes, standard_library
from communication import bytes_sent
from gpt import GPT, Config
from gpt_report import write_json
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from train_gpt import learning_rate
from train_long_plot import plot
from training import Training

from flash_attn2 import apply_rotary_emb, masks
from flash_attn2.distributed import ContextPlan, context_attention, context_plan
from flash_attn2.nn import Attention, RotaryEmbedding

TOLERANCE = 1e-5  # of losses, relative to those of one process
TIMEOUT = timedelta(hours=4)  # others wait while the first rank trains alone


class RotaryOfRows(RotaryEmbedding):
    """Rotates a rank's rows by their places in the whole sequence."""

    def __init__(self, dim: int, plan: ContextPlan) -> None:
        super().__init__(dim)
        cos, sin = self.tables(plan.seqlen)
        self._cos, self._sin = cos[plan.positions], sin[plan.positions]

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return apply_rotary_emb(x, self._cos, self._sin, self.interleaved)


class ContextAttention(Attention):
    """`Attention` of a sequence of which each rank has the plan's rows."""

    def __init__(self, *args: Any, plan: ContextPlan, rotary: RotaryEmbedding, **more: Any) -> None:
        super().__init__(*args, rotary=RotaryOfRows(rotary.dim, plan), **more)
        self.plan = plan

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        out: Any = context_attention(*self.project(x), self.plan)
        return self.out_proj(out.flatten(-2))


@dataclass(frozen=True)
class Batch:
    """One sequence, or a rank's rows of it; int64 (1, rows)."""

    tokens: Tensor
    targets: Tensor
    seqlen: int

    def of(self, plan: ContextPlan) -> Batch:
        return Batch(plan.shard(self.tokens, 1), plan.shard(self.targets, 1), self.seqlen)


@cache
def sources() -> bytes:
    return b"".join(standard_library().values())


def batches(seqlen: int, count: int) -> Iterator[Batch]:
    """Pieces of the sources of Python's standard library, one after another."""
    text = sources()
    for i in range(count):
        start = i * seqlen % (len(text) - seqlen)
        piece = torch.frombuffer(bytearray(text[start : start + seqlen + 1]), dtype=torch.uint8)
        yield Batch(piece[None, :-1].long(), piece[None, 1:].long(), seqlen)


class LongTraining(Training):
    """In one process."""

    attention: Any = Attention

    def __init__(self, args: argparse.Namespace, config: Config) -> None:
        torch.manual_seed(args.seed)  # the same weights on all ranks
        model = self.spread(GPT(config, self.attention))
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
        super().__init__(model, optimizer, "cpu", "float32")

    def spread(self, model: GPT) -> nn.Module:
        return model

    def own(self, batch: Batch) -> Batch:
        return batch

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.tokens).flatten(0, 1)
        total = F.cross_entropy(logits, batch.targets.flatten(), reduction="sum")
        return self.weight * total / batch.seqlen

    weight = 1

    def train(self, args: argparse.Namespace, console: Console) -> None:
        for i, batch in enumerate(batches(args.tokens, args.steps)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(args.lr, i, args.steps)
            self.step(self.own(batch))
            if (i + 1) % max(1, args.steps // 10) == 0:
                console.print(f"{i + 1:>5}   {self.losses[-1]:.5f}   {self.seconds[-1]:.1f} s")

    def measured(self, args: argparse.Namespace) -> dict[str, Any]:
        """Of this process."""
        batch = self.own(next(batches(args.tokens, 1)))
        return {
            "loss": self.losses,
            "seconds": self.seconds,
            "rows": batch.tokens.shape[1],
            "state_bytes": self.state_bytes(),
            "peak_bytes": self.peak_memory(batch),
        }

    def state_bytes(self) -> int:
        """Of parameters and the optimizer's averages, between steps, of this process."""
        parameters = [_local(x) for x in self.model.parameters()]
        averages = [_local(x) for s in self.optimizer.state.values() for x in s.values()]
        return sum(x.nbytes for x in (*parameters, *averages))


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


class ContextTraining(LongTraining):
    """Of one rank of a mesh, which has its rows of the sequence."""

    def __init__(self, args: argparse.Namespace, config: Config, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.plan = context_plan(
            mesh,
            args.tokens,
            pattern=masks.causal(),
            num_heads=config.num_heads,
            num_heads_kv=config.num_heads_kv,
            scheme=args.scheme,
        )
        self.attention = partial(ContextAttention, plan=self.plan)
        self.weight = mesh.size()
        self._parameters = args.parameters
        super().__init__(args, config)

    def spread(self, model: GPT) -> nn.Module:
        if self._parameters == "ddp":
            return DistributedDataParallel(model, device_mesh=self.mesh)
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh)
        return fully_shard(model, mesh=self.mesh)

    def own(self, batch: Batch) -> Batch:
        return batch.of(self.plan)

    def measured(self, args: argparse.Namespace) -> dict[str, Any]:
        batch = self.own(next(batches(args.tokens, 1)))

        def step() -> None:
            self.loss(batch).backward()
            self.optimizer.zero_grad()

        rank, ranks = self.mesh.get_rank(), self.mesh.size()
        return {**super().measured(args), "sent": bytes_sent(step, rank, ranks)}

    def planned_bytes(self, config: Config) -> list[int]:
        """That each rank sends in the attention layers of a step."""
        head_dim = config.d_model // config.num_heads
        report = self.plan.report(head_dim=head_dim, dtype=torch.float32)
        total: Tensor = config.num_layers * (report.forward_bytes + report.backward_bytes)
        return total.tolist()


def gathered(own: dict[str, Any], group: Any) -> dict[str, Any]:
    """What was measured on all ranks: losses are means, seconds those of the slowest, and the rest
    lists by rank."""
    found: list[Any] = [None] * group.size()
    dist.all_gather_object(found, own, group=group)
    sent = [x["sent"] for x in found]
    return {
        "loss": [statistics.fmean(x) for x in zip(*(x["loss"] for x in found), strict=True)],
        "seconds": [max(x) for x in zip(*(x["seconds"] for x in found), strict=True)],
        **{key: [x[key] for x in found] for key in ("rows", "state_bytes", "peak_bytes")},
        "attention_bytes_sent": [x["messages"] for x in sent],
        "parameter_bytes_sent": [x["collectives"] for x in sent],
    }


def largest_difference(run: dict[str, Any], one: dict[str, Any]) -> float:
    """Of losses at any step, relative."""
    pairs = zip(run["loss"], one["loss"], strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", choices=("fsdp2", "ddp"), default="fsdp2")
    parser.add_argument("--scheme", choices=("auto", "ring", "gather", "heads"), default="ring")
    parser.add_argument("--compare", action="store_true", help="with one process")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=16384, help="of a sequence")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--heads-kv", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results"), help="folder of what --compare writes"
    )
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def compare(
    args: argparse.Namespace, config: Config, results: dict[str, Any], console: Console
) -> None:
    """Trains in one process, adds what it finds to the results, and writes them. SystemExit where
    losses differ by more than TOLERANCE."""
    console.print("\nOne process:")
    ranks = len(next(iter(results.values()))["rows"])
    one = LongTraining(args, config)
    one.train(args, console)
    results["one process"] = one.measured(args)
    difference = largest_difference(*results.values())
    console.print(f"Losses differ by at most {difference:.2g} of their size.")
    options = {key: value for key, value in vars(args).items() if key != "output"}
    record = {
        "options": {"device": "cpu", "ranks": ranks, **options},
        "config": asdict(config),
        "largest_difference": difference,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "train-long.json", record, results)
    plot(args.output / "train-long.png", record, results)
    if difference > TOLERANCE:
        raise SystemExit(f"Losses must agree to {TOLERANCE:.0e} of their size.")


def main(argv: Sequence[str] | None = None, group: Any = None) -> dict[str, Any]:
    """On each rank of a group, or of all; returns what was measured, by ranks and one process."""
    args = parse(argv)
    torch.set_num_threads(1)
    group = group or dist.group.WORLD
    rank, ranks = group.rank(), group.size()
    console = Console(quiet=rank != 0)
    config = Config(args.d_model, args.layers, args.heads, args.heads_kv)
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("ring",))
    run = ContextTraining(args, config, mesh)
    console.print(f"{run.plan}\nparameters: {args.parameters}\n\n step   loss of rank 0, seconds")
    run.train(args, console)
    found = gathered(run.measured(args), group)
    if found["attention_bytes_sent"] != run.planned_bytes(config):
        raise SystemExit(f"{found['attention_bytes_sent']} bytes sent are not those of the plan")
    for name in ("state_bytes", "peak_bytes", "attention_bytes_sent", "parameter_bytes_sent"):
        console.print(f"{name.replace('_', ' ')} by rank: {', '.join(map(mebibytes, found[name]))}")
    results = {f"{ranks} ranks": found}
    if args.compare and rank == 0:
        compare(args, config, results, console)
    dist.barrier(group)
    return results


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=TIMEOUT)
    main()
    dist.destroy_process_group()

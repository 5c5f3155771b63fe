"""The `plan` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flash_attn2.distributed import page
from flash_attn2.distributed.cluster import Cluster
from flash_attn2.distributed.masks_by_name import FORMS, pattern_of
from flash_attn2.distributed.schemes import Attention, rows, table

_DESCRIPTION = """\
Shows how one attention could be divided among GPUs: for each scheme of context parallelism the
bytes that are sent, how even the work is, how much of the sending kernels hide, and the share of
ideal speed that a plain model predicts. All of it is computed, in seconds; no GPU is needed.
"""
_UNITS = {"k": 2**10, "M": 2**20}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `plan` to the subcommands of `python -m flash_attn2`."""
    parser = commands.add_parser(
        "plan",
        help="show how context parallelism would divide one attention",
        description=_DESCRIPTION,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    default = "default: %(default)s"
    add("--seqlen", default="128k", metavar="N", help=f"tokens, as 131072 or 128k or 1M; {default}")
    add("--gpus", type=int, default=64, metavar="N", help=default)
    add("--heads", type=int, default=32, metavar="N", help=default)
    add("--heads-kv", type=int, default=8, metavar="N", help=default)
    add("--head-dim", type=int, default=128, metavar="N", help=default)
    add("--mask", default="causal", help=f"{FORMS}; {default}")
    cluster = Cluster()
    add("--tflops", type=float, default=cluster.flops / 1e12, metavar="X",
        help=f"what a GPU reaches in attention; {default}")  # fmt: skip
    add("--node", type=int, default=cluster.node_size, metavar="N", help=f"GPUs a node; {default}")
    add("--node-bandwidth", type=float, default=cluster.node_bandwidth / 1e9, metavar="X",
        help=f"GB/s that a GPU sends within a node; {default}")  # fmt: skip
    add("--bandwidth", type=float, default=cluster.network_bandwidth / 1e9, metavar="X",
        help=f"and to other nodes; {default}")  # fmt: skip
    add("--docs", type=Path, metavar="FILE", help="only write the page of the documentation")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0. 2: unusable options."""
    try:
        if args.docs:
            args.docs.write_text(page.docs())
            return 0
        attention = _attention(args)
        print(page.about(attention, args.mask))
        print()
        print(table(rows(attention)))
        return 0
    except (ValueError, OSError) as error:
        print(f"python -m flash_attn2 plan: error: {error}", file=sys.stderr)
        return 2


def _attention(args: argparse.Namespace) -> Attention:
    for name in ("gpus", "heads", "heads_kv", "head_dim"):
        if getattr(args, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    seqlen = _tokens(args.seqlen)
    return Attention(
        seqlen,
        ranks=args.gpus,
        num_heads=args.heads,
        num_heads_kv=args.heads_kv,
        head_dim=args.head_dim,
        pattern=pattern_of(args.mask, seqlen),
        cluster=Cluster(
            args.tflops * 1e12, args.node_bandwidth * 1e9, args.bandwidth * 1e9, args.node
        ),
    )


def _tokens(text: str) -> int:
    unit = _UNITS.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isascii() or not digits.isdigit() or int(digits) < 1:
        raise ValueError(
            f"--seqlen must be a number of tokens like 131072, 128k or 1M, got {text!r}"
        )
    return int(digits) * unit

"""The `io` command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from flash_attn2.io import decoding_report, page, report
from flash_attn2.io.claims import claims
from flash_attn2.io.decoding import SCALE_UNITS, Decoding
from flash_attn2.io.problem import DEVICES, Attention

_TOKENS = 2**14  # of a batch, as in FlashAttention-2's benchmarks
_SEQLENS = tuple(2**n for n in range(10, 17))
_DESCRIPTION = """\
Shows what one attention moves and stores: bytes of global and shared memory, tensor-core
instructions, CTAs and their balance, peak memory, for standard attention, FlashAttention-1's
schedule, and this package's without a mask and with that of BigBird. All of it is computed, in
seconds; no GPU is needed.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `io` to the subcommands of `python -m flash_attn2`."""
    parser = commands.add_parser(
        "io", help="show what one attention moves and stores", description=_DESCRIPTION
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--seqlens", type=_integers, default=_SEQLENS, metavar="N,...", help="default: 1k to 64k"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"default: {_TOKENS} tokens in all, at least 1"
    )
    parser.add_argument("--heads", type=int, default=16, metavar="N", help="default: %(default)s")
    _add_decoding(parser)
    parser.add_argument(
        "--head-dim", type=int, default=64, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--head-dim-v", type=int, metavar="N", help="of values, default: as --head-dim"
    )
    parser.add_argument("--causal", action="store_true", help="under a causal mask")
    parser.add_argument(
        "--device", choices=tuple(DEVICES), default="a100", help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts, by kernel")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG, SVG ...)")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write a page in Markdown")
    parser.add_argument(
        "--emulate",
        action="store_true",
        help="only compare the forms with what the kernel emulator counts",
    )


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--decode",
        action="store_true",
        help="one query of each sequence over a cache of so many keys (only the table)",
    )
    group.add_argument("--heads-kv", type=int, metavar="N", help="of the cache, default: all heads")
    group.add_argument(
        "--scales", choices=SCALE_UNITS, help="codes of 8 bits, with a scale for each of these"
    )
    group.add_argument(
        "--shared-kv", action="store_true", help="values are the leading columns of the keys"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the tables; 0, or 1 where the emulator counts something else. 2: unusable options."""
    try:
        if args.emulate:
            from flash_attn2.io import emulate

            return emulate.run()
        return _show_decoding(args) if args.decode else _show(args)
    except (ValueError, ImportError, OSError) as error:
        print(f"python -m flash_attn2 io: error: {error}", file=sys.stderr)
        return 2


def _show(args: argparse.Namespace) -> int:
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError('--plot: matplotlib not installed; run: pip install "flash_attn2[bench]"')
    problems = [
        Attention(
            seqlen,
            batch=max(1, _TOKENS // seqlen) if args.batch is None else args.batch,
            heads=args.heads,
            head_dim=args.head_dim,
            head_dim_v=args.head_dim_v,
            causal=args.causal,
            device=DEVICES[args.device],
        )
        for seqlen in args.seqlens
    ]
    found, papers = report.rows(problems), claims()
    print(page.text(problems, found, papers))
    if args.json:
        args.json.write_text(json.dumps(report.record(problems, found, papers), indent=1) + "\n")
    if args.docs:
        args.docs.write_text(page.docs(problems, found, papers))
    if args.plot:
        from flash_attn2.io import plot

        plot.write(args.plot, found)
    return 0


def _show_decoding(args: argparse.Namespace) -> int:
    problems = [
        Decoding(
            seqlen,
            batch=1 if args.batch is None else args.batch,
            heads=args.heads,
            heads_kv=args.heads if args.heads_kv is None else args.heads_kv,
            head_dim=args.head_dim,
            head_dim_v=args.head_dim_v,
            scales=args.scales,
            shared=args.shared_kv,
            device=DEVICES[args.device],
        )
        for seqlen in args.seqlens
    ]
    print(decoding_report.LEGEND, "", decoding_report.table(problems), sep="\n")
    return 0


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of integers like 1024,2048"
        ) from None

"""The suites behind `--mode`: which cases the options select, who measures and who shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flash_attn2.bench.cases import PROFILES, build_cases
from flash_attn2.bench.corpus import UNITS, read_corpus
from flash_attn2.bench.decode import cases as decode
from flash_attn2.bench.modes import DECODE, MODES, SPARSE
from flash_attn2.bench.sparse import cases as sparse
from flash_attn2.bench.suite import Suite, UsageError
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from flash_attn2.bench.report import Report

STANDARD_LIMIT = 2.0  # GiB


class Selection(NamedTuple):
    cases: Sequence[Any]
    about: str  # for people, before the run
    options: dict[str, Any]  # for the record: those that not every suite has
    suite: Callable[[Sequence[Any], str, Budget], Suite[Any]]  # of cases, device and time per case


def _attention(args: argparse.Namespace, profile: str) -> Selection:
    mode = MODES[args.mode]
    corpus = read_corpus(args.unit or UNITS[0])
    sizes = PROFILES[profile].select(args.seqlens, args.head_dims, args.dtype)
    cases = build_cases(sizes, corpus, training=mode.gradients)
    unit, files, length = f"{corpus.unit}s", len(corpus.lengths), sum(corpus.lengths)
    about = f"Text: {files} files of Python's standard library, {length:,} {unit}."
    limit = args.standard_limit or STANDARD_LIMIT
    options = {"standard_limit_gib": limit, "text": {"files": files, unit: length}}

    def suite(cases: Sequence[Any], device: str, budget: Budget) -> Suite[Any]:
        from flash_attn2.bench.attention import SelfAttention

        return SelfAttention(cases, mode, device, budget, limit * 2**30)

    return Selection(cases, about, options, suite)


def _decoding(args: argparse.Namespace, profile: str) -> Selection:
    _refuse(args, "head_dims", "unit", "standard_limit")
    sizes = decode.PROFILES[profile].select(args.seqlens, args.dtype)

    def suite(cases: Sequence[Any], device: str, budget: Budget) -> Suite[Any]:
        from flash_attn2.bench.decode.suite import Decoding

        return Decoding(cases, device, budget)

    about = "One query per sequence, over a KV cache."
    return Selection(decode.build_cases(sizes), about, {}, suite)


def _sparse(args: argparse.Namespace, profile: str) -> Selection:
    _refuse(args, "unit")
    for widths in args.head_dims or ():
        if widths.head_dim_v is not None:
            raise UsageError(f"--head-dims {widths}: --mode {SPARSE} has one width, such as 64")
    head_dims = args.head_dims and tuple(widths.keys for widths in args.head_dims)
    sizes = sparse.PROFILES[profile].select(args.seqlens, head_dims, args.dtype)
    limit = args.standard_limit or STANDARD_LIMIT

    def suite(cases: Sequence[Any], device: str, budget: Budget) -> Suite[Any]:
        from flash_attn2.bench.sparse.suite import SparseAttention

        return SparseAttention(cases, device, budget, limit * 2**30)

    about = "One sequence with a block mask."
    return Selection(sparse.build_cases(sizes), about, {"standard_limit_gib": limit}, suite)


def _refuse(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option}: not an option of --mode {args.mode}")


# What the options of each mode ask for, of a profile.
SELECT: Mapping[str, Callable[[argparse.Namespace, str], Selection]] = {
    **dict.fromkeys(MODES, _attention),
    DECODE: _decoding,
    SPARSE: _sparse,
}


def report(record: Mapping[str, Any]) -> Report:
    """What shows a record of any mode."""
    from flash_attn2.bench.attention_report import AttentionReport
    from flash_attn2.bench.decode.report import DecodeReport
    from flash_attn2.bench.sparse.report import SparseReport

    mode = record["options"].get("mode")
    if mode not in SELECT:
        raise UsageError("not a record of `python -m flash_attn2 bench`")
    shown: Mapping[str, type[Report]] = {DECODE: DecodeReport, SPARSE: SparseReport}
    return shown.get(mode, AttentionReport)(record)


def suffix(mode: str) -> str:
    """Of the names of files with results."""
    return "" if mode == "fwd" else f"-{mode.replace('+', '-')}"

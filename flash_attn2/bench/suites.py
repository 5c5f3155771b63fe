"""The suites behind `--mode`: which cases the options select, who measures and who shows them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flash_attn2.bench.cases import PROFILES, build_cases
from flash_attn2.bench.corpus import UNITS, read_corpus
from flash_attn2.bench.decode import cases as decode
from flash_attn2.bench.modes import DECODE, MODES
from flash_attn2.bench.suite import Suite, UsageError
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from flash_attn2.bench.report import Report

STANDARD_LIMIT = 2.0  # GiB


class Selection(NamedTuple):
    cases: Sequence[Any]
    about: str  # for people, before the run
    options: dict[str, Any]  # for the record: those that not every suite has


class SelfAttention:
    """`--mode fwd`, `bwd` and `fwd+bwd`."""

    @staticmethod
    def select(args: argparse.Namespace, profile: str) -> Selection:
        corpus = read_corpus(args.unit or UNITS[0])
        sizes = PROFILES[profile].select(args.seqlens, args.head_dims, args.dtype)
        cases = build_cases(sizes, corpus, training=MODES[args.mode].gradients)
        unit, files, length = f"{corpus.unit}s", len(corpus.lengths), sum(corpus.lengths)
        about = f"Text: {files} files of Python's standard library, {length:,} {unit}."
        limit = args.standard_limit or STANDARD_LIMIT
        text = {"files": files, unit: length}
        return Selection(cases, about, {"standard_limit_gib": limit, "text": text})

    @staticmethod
    def suite(
        args: argparse.Namespace, device: str, budget: Budget, cases: Sequence[Any]
    ) -> Suite[Any]:
        from flash_attn2.bench.attention import SelfAttention

        limit = (args.standard_limit or STANDARD_LIMIT) * 2**30
        return SelfAttention(cases, MODES[args.mode], device, budget, limit)

    @staticmethod
    def report(record: Mapping[str, Any]) -> Report:
        from flash_attn2.bench.attention_report import AttentionReport

        return AttentionReport(record)


class Decoding:
    """`--mode decode`."""

    @staticmethod
    def select(args: argparse.Namespace, profile: str) -> Selection:
        for name in ("head_dims", "unit", "standard_limit"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option}: not an option of --mode {args.mode}")
        sizes = decode.PROFILES[profile].select(args.seqlens, args.dtype)
        return Selection(decode.build_cases(sizes), "One query per sequence, over a KV cache.", {})

    @staticmethod
    def suite(
        args: argparse.Namespace, device: str, budget: Budget, cases: Sequence[Any]
    ) -> Suite[Any]:
        from flash_attn2.bench.decode.suite import Decoding

        del args
        return Decoding(cases, device, budget)

    @staticmethod
    def report(record: Mapping[str, Any]) -> Report:
        from flash_attn2.bench.decode.report import DecodeReport

        return DecodeReport(record)


SUITES: Mapping[str, type[SelfAttention] | type[Decoding]] = {
    **dict.fromkeys(MODES, SelfAttention),
    DECODE: Decoding,
}


def report(record: Mapping[str, Any]) -> Report:
    """What shows a record of any mode."""
    mode = record["options"].get("mode")
    if mode not in SUITES:
        raise UsageError("not a record of `python -m flash_attn2 bench`")
    return SUITES[mode].report(record)


def suffix(mode: str) -> str:
    """Of the names of files with results."""
    return "" if mode == "fwd" else f"-{mode.replace('+', '-')}"

"""What the command measures in a mode, and how it shows that: self-attention, or decoding."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from flash_attn2.bench.cases import PROFILES, build_cases
from flash_attn2.bench.corpus import read_corpus
from flash_attn2.bench.decode import cases as decode
from flash_attn2.bench.modes import DECODE, MODES
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(Exception):
    """The options do not fit together or this machine; the message says how."""


class Case(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def description(self) -> tuple[str, str]: ...


class Runner(Protocol):
    def run(self, case: Any) -> Any:
        """The result of a case."""


class Suite(Protocol):
    """Cases, and what becomes of their results."""

    @property
    def suffix(self) -> str:
        """Of the names of files with results."""

    @property
    def about(self) -> str:
        """For people, before the run."""

    @property
    def cases(self) -> Sequence[Case]: ...

    def options(self) -> dict[str, Any]:
        """Those that bear on the results."""

    def runner(self, budget: Budget) -> Runner: ...
    def print_tables(self, console: Console, results: Sequence[Any]) -> None: ...
    def records(self, results: Sequence[Any]) -> Sequence[dict[str, Any]]: ...
    def write_plots(self, folder: Path, results: Sequence[Any], machine: str) -> list[Path]: ...
    def out_of_tolerance(self, results: Sequence[Any]) -> list[str]: ...


def suite(args: argparse.Namespace, device: str) -> Suite:
    """What the options ask for, with all cases."""
    return Decoding(args, device) if args.mode == DECODE else SelfAttention(args, device)


class SelfAttention:
    """Sweeps and models: every query of a sequence attends to the keys of that sequence."""

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        self._args, self._device = args, device
        self._mode = MODES[args.mode]
        self.suffix = self._mode.suffix
        profile = PROFILES["demo" if args.demo and device == "cpu" else device]
        changes: dict[str, Any] = {}
        if args.head_dims:
            changes["head_dims"] = args.head_dims
        if args.seqlens:
            changes["seqlens"] = args.seqlens
        if args.dtype:
            changes["sweep_dtypes"] = changes["model_dtypes"] = args.dtype
        self._corpus = corpus = read_corpus(args.unit)
        self.cases = build_cases(replace(profile, **changes), corpus, training=self._mode.gradients)
        self.about = (
            f"Text: {len(corpus.lengths)} files of Python's standard library, "
            f"{sum(corpus.lengths):,} {corpus.unit}s."
        )

    def options(self) -> dict[str, Any]:
        corpus = self._corpus
        text = {"files": len(corpus.lengths), f"{corpus.unit}s": sum(corpus.lengths)}
        limit = self._args.standard_limit
        return {"head_dims": self._args.head_dims, "standard_limit_gib": limit, "text": text}

    def runner(self, budget: Budget) -> Runner:
        from flash_attn2.bench.runner import Runner

        limit = self._args.standard_limit * 2**30
        return Runner(self._device, self._mode, budget, limit, torch.get_num_threads())

    def print_tables(self, console: Console, results: Sequence[Any]) -> None:
        from flash_attn2.bench.report import print_tables

        print_tables(console, results, self._mode)

    def records(self, results: Sequence[Any]) -> Sequence[dict[str, Any]]:
        from flash_attn2.bench.report import records

        return records(results)

    def write_plots(self, folder: Path, results: Sequence[Any], machine: str) -> list[Path]:
        from flash_attn2.bench.plots import write_plots

        return write_plots(folder, results, machine, self._mode)

    def out_of_tolerance(self, results: Sequence[Any]) -> list[str]:
        from flash_attn2.bench.report import out_of_tolerance

        return out_of_tolerance(results)


class Decoding:
    """One new query per sequence, over a KV cache."""

    suffix = f"-{DECODE}"
    about = "One query per sequence, over a KV cache."

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        if args.head_dims:
            raise UsageError(f"--head-dims: --mode {DECODE} has no sweep of head dims")
        self._device = device
        profile = decode.PROFILES["demo" if args.demo and device == "cpu" else device]
        changes: dict[str, Any] = {}
        if args.seqlens:
            changes["seqlens_k"] = args.seqlens
        if args.dtype:
            changes["dtypes"] = args.dtype
        self.cases = decode.build_cases(replace(profile, **changes))

    def options(self) -> dict[str, Any]:
        return {}

    def runner(self, budget: Budget) -> Runner:
        from flash_attn2.bench.decode.runner import Runner

        return Runner(self._device, budget)

    def print_tables(self, console: Console, results: Sequence[Any]) -> None:
        from flash_attn2.bench.decode.report import print_tables

        print_tables(console, results)

    def records(self, results: Sequence[Any]) -> Sequence[dict[str, Any]]:
        from flash_attn2.bench.decode.report import records

        return records(results)

    def write_plots(self, folder: Path, results: Sequence[Any], machine: str) -> list[Path]:
        from flash_attn2.bench.decode.plots import write_plots

        return write_plots(folder, results, machine)

    def out_of_tolerance(self, results: Sequence[Any]) -> list[str]:
        from flash_attn2.bench.report import out_of_tolerance

        return out_of_tolerance(results)

"""The `bench` command."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_attn2.bench.cases import DTYPES, PROFILES, Case, Profile, build_cases
from flash_attn2.bench.corpus import UNITS, Corpus, read_corpus
from flash_attn2.bench.modes import MODES
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from rich.console import Console

    from flash_attn2.bench.runner import Result

MAX_HEAD_DIM = 256
_NARROWEST = 126  # columns that the table needs when it is not shown in a terminal
_DEMO_SECONDS = 1.0
_SECONDS = 3.0
_MIN_ROUNDS = {True: 3, False: 5}  # by whether this is the demo
_MAX_ROUNDS = 100

_DESCRIPTION = """\
Runs flash_attn2, PyTorch's scaled_dot_product_attention and standard attention side by side: a
sweep of head dimensions, a sweep of sequence lengths, and the attention layers of real models on
real text (the source files of Python's standard library). Shows a table, and writes every sample
and plots to the output folder.
"""


class UsageError(Exception):
    """The options do not fit together or this machine; the message says how."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `bench` to the subcommands of `python -m flash_attn2`."""
    parser = commands.add_parser(
        "bench", help="compare speed, memory and accuracy", description=_DESCRIPTION
    )
    parser.set_defaults(run=run)
    what = parser.add_argument_group("what to measure")
    what.add_argument("--demo", action="store_true", help="a short form, about two minutes")
    what.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    what.add_argument("--mode", choices=tuple(MODES), default="fwd", help="default: fwd")
    what.add_argument(
        "--dtype", type=_dtypes, metavar="NAME,...", help=f"some of {', '.join(DTYPES)}"
    )
    what.add_argument("--cases", type=_regex, metavar="REGEX", help="only cases with such a name")
    what.add_argument(
        "--head-dims", type=_integers(MAX_HEAD_DIM), metavar="N,...", help="for the head-dim sweep"
    )
    what.add_argument(
        "--seqlens", type=_integers(2**20), metavar="N,...", help="for the sequence-length sweep"
    )
    what.add_argument(
        "--unit", choices=UNITS, default="token", help="how documents are measured (default: token)"
    )
    what.add_argument("--list", action="store_true", help="only print the cases")
    how = parser.add_argument_group("how to measure")
    how.add_argument("--threads", type=_positive_int, metavar="N", help="CPU threads")
    length = how.add_mutually_exclusive_group()
    length.add_argument("--repeats", type=_positive_int, metavar="N", help="rounds per case")
    length.add_argument(
        "--seconds",
        type=_positive_float,
        metavar="S",
        help=f"time per case (default: {_SECONDS:g}, with --demo {_DEMO_SECONDS:g})",
    )
    how.add_argument(
        "--standard-limit",
        type=_positive_float,
        default=2.0,
        metavar="GIB",
        help="leave standard attention out where its scores, and all of their size that a "
        "backward pass needs, are larger (default: 2)",
    )
    where = parser.add_argument_group("results")
    where.add_argument(
        "--output",
        type=Path,
        default=Path("bench-results"),
        metavar="DIR",
        help="default: %(default)s",
    )
    where.add_argument("--no-plots", action="store_true", help="write no PNG files")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; 0, 1 if flash_attn2's error is too large, or 2 for unusable options."""
    try:
        return _run(args)
    except UsageError as error:
        print(f"python -m flash_attn2 bench: error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    device = _device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    corpus = read_corpus(args.unit)
    cases = select_cases(args, device, corpus)
    if args.list:
        for case in cases:
            print(f"{case.name:<40} {', '.join(case.description)}")
        return 0
    _require("rich", *(() if args.no_plots else ("matplotlib",)))
    _make_folder(args.output)

    from rich.console import Console

    console = Console()
    if not console.is_terminal and console.width < _NARROWEST:
        console = Console(width=_NARROWEST)
    return _measure(args, device, corpus, cases, console)


def select_cases(args: argparse.Namespace, device: str, corpus: Corpus) -> list[Case]:
    """The cases that the options ask for."""
    cases = build_cases(_profile(args, device), corpus, training=MODES[args.mode].gradients)
    if args.cases is None:
        return cases
    selected = [case for case in cases if args.cases.search(case.name)]
    if not selected:
        raise UsageError(
            f"--cases {args.cases.pattern!r} matches none of the {len(cases)} cases; "
            "--list shows their names"
        )
    return selected


def _profile(args: argparse.Namespace, device: str) -> Profile:
    profile = PROFILES["demo" if args.demo and device == "cpu" else device]
    changes: dict[str, Any] = {}
    if args.head_dims:
        changes["head_dims"] = args.head_dims
    if args.seqlens:
        changes["seqlens"] = args.seqlens
    if args.dtype:
        changes["sweep_dtypes"] = changes["model_dtypes"] = args.dtype
    return replace(profile, **changes)


def budget(args: argparse.Namespace) -> Budget:
    if args.repeats:
        return Budget(float("inf"), args.repeats, args.repeats)
    seconds = args.seconds or (_DEMO_SECONDS if args.demo else _SECONDS)
    return Budget(seconds, _MIN_ROUNDS[args.demo], _MAX_ROUNDS)


def _measure(
    args: argparse.Namespace, device: str, corpus: Corpus, cases: Sequence[Case], console: Console
) -> int:
    from flash_attn2.bench import report

    machine = report.describe_machine(device)
    hardware = machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads")
    console.print(
        f"{len(cases)} cases on {hardware}, torch {torch.__version__}. Text: "
        f"{len(corpus.lengths)} files of Python's standard library, "
        f"{sum(corpus.lengths):,} {corpus.unit}s."
    )
    results = _run_cases(args, device, cases, console)
    complete = len(results) == len(cases)
    if not results:
        console.print("Interrupted before the first case was done.")
        return 130
    mode = MODES[args.mode]
    report.print_tables(console, results, mode)
    files = [args.output / f"results{mode.suffix}.json"]
    report.write_json(files[0], results, device, _record_of(args, corpus), complete)
    if not args.no_plots:
        from flash_attn2.bench.plots import write_plots

        files += write_plots(args.output, results, f"{hardware}, torch {torch.__version__}", mode)
    console.print("Wrote " + ", ".join(map(str, files)))
    if not complete:
        console.print(f"Interrupted: {len(results)} of {len(cases)} cases.")
        return 130
    wrong = report.out_of_tolerance(results)
    if wrong:
        console.print(f"[bold red]Error out of tolerance in:[/] {', '.join(wrong)}")
    return 1 if wrong else 0


def _record_of(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """The options that bear on the results, and the size of the text."""
    names = ("demo", "mode", "dtype", "head_dims", "seqlens", "repeats", "seconds")
    record = {name: getattr(args, name) for name in names}
    record["standard_limit_gib"] = args.standard_limit
    record["cases"] = args.cases.pattern if args.cases else None
    record["text"] = {"files": len(corpus.lengths), f"{corpus.unit}s": sum(corpus.lengths)}
    return record


def _run_cases(
    args: argparse.Namespace, device: str, cases: Sequence[Case], console: Console
) -> list[Result]:
    """All results, or those so far when the user interrupts."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from flash_attn2.bench.runner import Runner

    limit = args.standard_limit * 2**30
    runner = Runner(device, MODES[args.mode], budget(args), limit, torch.get_num_threads())
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    results = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        try:
            for case in cases:
                progress.update(task, description=case.name)
                results.append(runner.run(case))
                progress.advance(task)
        except KeyboardInterrupt:
            pass
    return results


def _device(name: str | None) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: torch {torch.__version__} sees no CUDA device")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f'{" and ".join(missing)} not installed; run: pip install "flash_attn2[bench]"'
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror}") from error


def _integers(maximum: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of integers like 64,128"
            ) from None
        for value in values:
            if not 1 <= value <= maximum:
                raise argparse.ArgumentTypeError(f"{value} is not between 1 and {maximum}")
        return values

    return parse


def _dtypes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in DTYPES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(DTYPES)}")
    return names


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value

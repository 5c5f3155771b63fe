"""The `bench` command."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_attn2 import _env
from flash_attn2.bench.cases import DTYPES
from flash_attn2.bench.corpus import UNITS
from flash_attn2.bench.modes import DECODE, MODES
from flash_attn2.bench.suites import Case, Runner, Suite, UsageError, suite
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from rich.console import Console

MAX_HEAD_DIM = 256
_NARROWEST = 126  # columns that the table needs when it is not shown in a terminal
_DEMO_SECONDS = 1.0
_SECONDS = 3.0
_MIN_ROUNDS = {True: 3, False: 5}  # by whether this is the demo
_MAX_ROUNDS = 100
_RECORDED = ("demo", "mode", "dtype", "seqlens", "repeats", "seconds")

_DESCRIPTION = """\
Runs flash_attn2, PyTorch's scaled_dot_product_attention and standard attention side by side: a
sweep of head dimensions, a sweep of sequence lengths, and the attention layers of real models on
real text (the source files of Python's standard library); or decoding over a KV cache, by batch,
length, group size and page size. Shows a table, and writes every sample and plots to the output
folder.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `bench` to the subcommands of `python -m flash_attn2`."""
    parser = commands.add_parser(
        "bench", help="compare speed, memory and accuracy", description=_DESCRIPTION
    )
    parser.set_defaults(run=run)
    what = parser.add_argument_group("what to measure")
    what.add_argument("--demo", action="store_true", help="a short form, about two minutes")
    what.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    what.add_argument(
        "--mode",
        choices=(*MODES, DECODE),
        default="fwd",
        help="the forward pass (default), the backward pass, both, or decoding over a KV cache",
    )
    what.add_argument(
        "--dtype", type=_dtypes, metavar="NAME,...", help=f"some of {', '.join(DTYPES)}"
    )
    what.add_argument("--cases", type=_regex, metavar="REGEX", help="only cases with such a name")
    what.add_argument(
        "--head-dims", type=_integers(MAX_HEAD_DIM), metavar="N,...", help="for the head-dim sweep"
    )
    what.add_argument(
        "--seqlens",
        type=_integers(2**20),
        metavar="N,...",
        help=f"for the sequence-length sweep; with --mode {DECODE} numbers of keys",
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
    measured = suite(args, device)
    cases = select_cases(args, measured.cases)
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
    return _measure(args, device, measured, cases, console)


def select_cases(args: argparse.Namespace, cases: Sequence[Case]) -> Sequence[Case]:
    """Those that the options ask for."""
    if args.cases is None:
        return cases
    selected = [case for case in cases if args.cases.search(case.name)]
    if not selected:
        raise UsageError(
            f"--cases {args.cases.pattern!r} matches none of the {len(cases)} cases; "
            "--list shows their names"
        )
    return selected


def budget(args: argparse.Namespace) -> Budget:
    if args.repeats:
        return Budget(float("inf"), args.repeats, args.repeats)
    seconds = args.seconds or (_DEMO_SECONDS if args.demo else _SECONDS)
    return Budget(seconds, _MIN_ROUNDS[args.demo], _MAX_ROUNDS)


def _measure(
    args: argparse.Namespace,
    device: str,
    measured: Suite,
    cases: Sequence[Case],
    console: Console,
) -> int:
    from flash_attn2.bench.record import describe_machine, write_record

    machine = describe_machine(device)
    hardware = machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads")
    console.print(f"{len(cases)} cases on {hardware}, torch {torch.__version__}. {measured.about}")
    results, interrupted = _run_cases(measured.runner(budget(args)), cases, console)
    complete = len(results) == len(cases)
    if not results:
        console.print(
            "Interrupted before the first case was done." if interrupted else "No results."
        )
        return 130 if interrupted else 1
    measured.print_tables(console, results)
    files = [args.output / f"results{measured.suffix}.json"]
    options = _options(args) | measured.options()
    write_record(files[0], device, options, complete, measured.records(results))
    if not args.no_plots:
        title = f"{hardware}, torch {torch.__version__}"
        files += measured.write_plots(args.output, results, title)
    console.print("Wrote " + ", ".join(map(str, files)))
    if interrupted:
        console.print(f"Interrupted: {len(results)} of {len(cases)} cases.")
        return 130
    wrong = measured.out_of_tolerance(results)
    if wrong:
        console.print(f"[bold red]Error out of tolerance in:[/] {', '.join(wrong)}")
    return 1 if wrong or not complete else 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that bear on the results, whatever the mode."""
    record = {name: getattr(args, name) for name in _RECORDED}
    record["cases"] = args.cases.pattern if args.cases else None
    return record


def _run_cases(runner: Runner, cases: Sequence[Case], console: Console) -> tuple[list[Any], bool]:
    """The results so far, and whether the user has interrupted; a case that fails has none."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

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
                try:
                    results.append(runner.run(case))
                except Exception as error:  # the others are not to be lost
                    console.print(Text(f"{case.name}: {error!r}", style="bold red"))
                progress.advance(task)
        except KeyboardInterrupt:
            return results, True
    return results, False


def _device(name: str | None) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: torch {torch.__version__} sees no CUDA device")
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and _env.backend() == "sm80-emulated":
        raise UsageError("FLASH_ATTN2_BACKEND=sm80-emulated: the emulator's times mean nothing")
    return device


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

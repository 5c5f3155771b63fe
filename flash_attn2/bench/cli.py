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

from flash_attn2 import build_info
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V
from flash_attn2.bench import suites
from flash_attn2.bench.cases import DTYPES, Widths
from flash_attn2.bench.corpus import UNITS
from flash_attn2.bench.modes import DECODE, SPARSE
from flash_attn2.bench.suite import UsageError
from flash_attn2.bench.timing import Budget

if TYPE_CHECKING:
    from rich.console import Console

_NARROWEST = 126  # columns that the table needs when it is not shown in a terminal
_DEMO_SECONDS = 1.0
_SECONDS = 3.0
_MIN_ROUNDS = {True: 3, False: 5}  # by whether this is the demo
_MAX_ROUNDS = 100
_RECORDED = ("demo", "mode", "dtype", "seqlens", "head_dims", "repeats", "seconds")

_DESCRIPTION = """\
Runs flash_attn2, PyTorch's scaled_dot_product_attention and standard attention side by side: a
sweep of head dimensions, a sweep of sequence lengths, and the attention layers of real models on
real text (the source files of Python's standard library); or decoding over a KV cache, by batch,
length, group size and page size; or block masks, by pattern and length. Shows a table, and writes
every sample and plots to the output folder.
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
        choices=tuple(suites.SELECT),
        default="fwd",
        help="the forward pass (default), the backward pass, both, decoding over a KV cache, or "
        "block masks",
    )
    what.add_argument(
        "--dtype",
        type=_dtypes,
        metavar="NAME,...",
        help=f"some of {', '.join(DTYPES)}, or {', '.join(DTYPES.values())}",
    )
    what.add_argument("--cases", type=_regex, metavar="REGEX", help="only cases with such a name")
    what.add_argument(
        "--head-dims",
        type=_head_dims,
        metavar="N,...",
        help="of both sweeps, such as 64,192/128, the latter where values have another width than "
        "queries and keys; models have their own",
    )
    what.add_argument(
        "--seqlens",
        type=_integers(2**20),
        metavar="N,...",
        help=f"of both sweeps; models have their own. With --mode {DECODE}: keys, of every sweep",
    )
    what.add_argument(
        "--unit", choices=UNITS, help=f"how documents are measured (default: {UNITS[0]})"
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
        metavar="GIB",
        help="leave standard attention out where its scores, and all of their size that a "
        f"backward pass needs, are larger (default: {suites.STANDARD_LIMIT:g}). With --mode "
        f"{SPARSE}: SDPA, where its mask is larger",
    )
    where = parser.add_argument_group("results")
    where.add_argument(
        "--output",
        type=Path,
        default=Path("bench-results"),
        metavar="DIR",
        help="default: %(default)s",
    )
    where.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing: tables and plots of a record"
    )
    where.add_argument("--no-plots", action="store_true", help="write no PNG files")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; 0, or 1 if a case fails or has too large an error in flash_attn2.

    2 for unusable options, and 128 + the signal's number if a signal ends it.
    """
    try:
        return _show(args) if args.show else _run(args)
    except UsageError as error:
        print(f"python -m flash_attn2 bench: error: {error}", file=sys.stderr)
        return 2


def _show(args: argparse.Namespace) -> int:
    _prepare_output(args)
    from flash_attn2.bench.record import read_record

    try:
        record = read_record(args.show)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"--show {args.show}: no record of results ({error!r})") from error
    return _report(args, record, [])


def _run(args: argparse.Namespace) -> int:
    device = _device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    _check_dtypes(args.dtype, device)
    selection = suites.SELECT[args.mode](args, f"{device}-demo" if args.demo else device)
    cases = filter_cases(args.cases, selection.cases)
    if args.list:
        for case in cases:
            print(f"{case.name:<40} {', '.join(case.description)}")
        return 0
    _prepare_output(args)

    from flash_attn2.bench import report, runner
    from flash_attn2.bench.record import Record, hardware, read_record

    path = args.output / f"results{suites.suffix(args.mode)}.json"
    record = Record(path, device, _options(args) | selection.options)
    console = _console()
    console.print(f"{len(cases)} cases on {hardware(record.head)}. {selection.about}")
    suite = selection.suite(cases, device, budget(args))
    done, status = runner.run(suite, record, report.progress)
    if not done:
        console.print("Interrupted before the first case was done.")
        return status
    failed = _report(args, read_record(path), [path])
    if status:
        console.print(f"Interrupted: {len(done)} of {len(cases)} cases.")
    return status or failed


def _report(args: argparse.Namespace, record: dict[str, Any], files: list[Path]) -> int:
    """Shows a record; 1 if a case has failed or has too large an error."""
    from flash_attn2.bench.report import print_table

    console = _console()
    shown = suites.report(record)
    for table in shown.tables():
        print_table(console, table)
    for line in shown.summary():
        console.print(line)
    if not args.no_plots:
        from flash_attn2.bench import plots

        files += plots.write(args.output, shown)
    if files:
        console.print("Wrote " + ", ".join(map(str, files)))
    return 1 if shown.failed or shown.out_of_tolerance() else 0


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal and console.width < _NARROWEST:
        console = Console(width=_NARROWEST)
    return console


def filter_cases(pattern: re.Pattern[str] | None, cases: Sequence[Any]) -> Sequence[Any]:
    """Those with such a name."""
    if pattern is None:
        return cases
    selected = [case for case in cases if pattern.search(case.name)]
    if not selected:
        raise UsageError(
            f"--cases {pattern.pattern!r} matches none of the {len(cases)} cases; "
            "--list shows their names"
        )
    return selected


def budget(args: argparse.Namespace) -> Budget:
    if args.repeats:
        return Budget(float("inf"), args.repeats, args.repeats)
    seconds = args.seconds or (_DEMO_SECONDS if args.demo else _SECONDS)
    return Budget(seconds, _MIN_ROUNDS[args.demo], _MAX_ROUNDS)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that bear on the results, whatever the mode."""
    record = {name: getattr(args, name) for name in _RECORDED}
    record["cases"] = args.cases.pattern if args.cases else None
    return record


def _device(name: str | None) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: torch {torch.__version__} sees no CUDA device")
    try:
        built = build_info()
    except ValueError as error:  # of an environment variable
        raise UsageError(str(error)) from error
    if name == "cuda" and built["cuda"] is None:
        raise UsageError("--device cuda: flash_attn2 was built without it; FLASH_ATTN2_CUDA=on")
    device = name or ("cuda" if torch.cuda.is_available() and built["cuda"] else "cpu")
    if device == "cpu" and built["backend"].endswith("-emulated"):
        raise UsageError(
            f"FLASH_ATTN2_BACKEND={built['backend']}: the emulator's times mean nothing"
        )
    return device


def _check_dtypes(names: Sequence[str] | None, device: str) -> None:
    if device == "cuda" and "float32" in (names or ()):
        raise UsageError("--dtype float32: the CUDA kernels compute bfloat16 and float16")


def _prepare_output(args: argparse.Namespace) -> None:
    _require("rich", *(() if args.no_plots else ("matplotlib",)))
    _make_folder(args.output)


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
        return tuple(dict.fromkeys(values))

    return parse


def _head_dims(text: str) -> tuple[Widths, ...]:
    found = [re.fullmatch(r"(\d+)(?:/(\d+))?", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of head dims like 64,192/128")
    all_widths = [Widths(int(one[1]), int(one[2] or one[1])) for one in found if one]
    for widths in all_widths:
        if not (1 <= widths.keys <= MAX_HEAD_DIM and 1 <= widths.values <= MAX_HEAD_DIM_V):
            raise argparse.ArgumentTypeError(
                f"{widths} is not between 1 and {MAX_HEAD_DIM} for queries and keys, and "
                f"{MAX_HEAD_DIM_V} for values"
            )
    return tuple(dict.fromkeys(all_widths))


def _dtypes(text: str) -> tuple[str, ...]:
    names = {name: name for name in DTYPES} | {short: name for name, short in DTYPES.items()}
    for name in text.split(","):
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
    return tuple(dict.fromkeys(names[name] for name in text.split(",")))


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def _positive(kind: type[int] | type[float], name: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive {name}")
        return value

    return parse


_positive_int = _positive(int, "integer")
_positive_float = _positive(float, "number")

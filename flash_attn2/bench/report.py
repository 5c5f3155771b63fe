"""The results as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import flash_attn2
from flash_attn2.bench import timing
from flash_attn2.bench.contenders import CONTENDERS, FLASH_ATTN2, SDPA, STANDARD
from flash_attn2.bench.modes import Mode
from flash_attn2.bench.runner import Result

GROUPS = {"head_dim": "Head dimensions", "seqlen": "Sequence lengths", "model": "Models"}

_SCHEMA = 2
_NOISY = 1.5


def print_tables(console: Console, results: Sequence[Result], mode: Mode) -> None:
    """One table per group of cases, and a summary."""
    for group, title in GROUPS.items():
        members = [result for result in results if result.case.group == group]
        if members:
            full_title = f"{mode.title}: {title.lower()}"
            console.print(_table(full_title, members, throughput_unit(results)))
            console.print()
    _print_summary(console, results, mode)


def _table(title: str, results: Sequence[Result], unit: tuple[str, float]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.HORIZONTALS,
    )
    table.add_column("batch x rows x heads x head dim", min_width=34, overflow="fold")
    table.add_column("contender", no_wrap=True)
    for header in ("time", unit[0], "speed-up", "extra memory", "max error"):
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        for name in CONTENDERS:
            table.add_row(*_row(result, name, unit[1]), end_section=name == STANDARD)
    return table


def _row(result: Result, name: str, flops: float) -> list[str | Text]:
    # The first column holds the name of the case, then its shape.
    case = result.case
    shape, options = case.description
    titles: dict[str, str | Text] = {
        FLASH_ATTN2: Text(case.name, style="bold"),
        SDPA: f"  {shape}",
        STANDARD: f"  {options}",
    }
    title = titles[name]
    if name in result.unavailable:
        return [title, name, Text(result.unavailable[name], style="dim")]
    one = result.measurements[name]
    error = Text("n/a" if one.error is None else f"{one.error:.1e}")
    if name == FLASH_ATTN2 and not result.errors.within_tolerance(name):
        error.stylize("bold red")
    return [
        title,
        _describe(name, one.variant),
        format_time(one.seconds),
        format_number(one.flops_per_second / flops),
        _format_ratio(result, name),
        "n/a" if one.extra_bytes is None else format_bytes(one.extra_bytes),
        error,
    ]


def _describe(name: str, variant: str) -> Text:
    style = "bold" if name == FLASH_ATTN2 else ""
    return Text.assemble((name, style), (f" {variant}" if variant else "", "dim"))


def _format_ratio(result: Result, name: str) -> Text:
    if name == FLASH_ATTN2:
        return Text("")
    ratio = result.ratios[name]
    style = "green" if ratio.value >= 1 else "bold red"
    spread = Text(f" {ratio.low:.2f}-{ratio.high:.2f}", style="dim")
    return Text.assemble((f"{ratio.value:.2f}x", style), spread)


def _print_summary(console: Console, results: Sequence[Result], mode: Mode) -> None:
    for name in (SDPA, STANDARD):
        ratios = {r.case.name: r.ratios[name].value for r in results if name in r.ratios}
        if not ratios:
            continue
        mean = statistics.geometric_mean(ratios.values())
        worst = min(ratios, key=lambda case: ratios[case])
        slower = [case for case, ratio in ratios.items() if ratio < 1]
        console.print(
            f"flash_attn2 is [bold]{mean:.2f}x[/] as fast as {name} (geometric mean of "
            f"{len(ratios)} cases; lowest {ratios[worst]:.2f}x in {worst})."
        )
        if slower:
            console.print(f"[red]Slower than {name} in:[/] {', '.join(slower)}")
    noisy = sum(
        any(timing.spread(one.samples) > _NOISY for one in result.measurements.values())
        for result in results
    )
    if noisy:
        console.print(
            f"[yellow]Noise:[/] in {noisy} of {len(results)} cases the times of a contender vary "
            f"by more than {_NOISY}x between quartiles. Is the machine busy?"
        )
    sampled = sum(result.errors.checked < 1 for result in results)
    sample = f", on a sample of the heads and rows in {sampled} cases" if sampled else ""
    passes = ", of both passes" if mode.gradients else ""
    what = " of the gradients" if mode.gradients else ""
    console.print(
        "[dim]loop: sequence by sequence. padded: to the longest sequence, with a mask. mask: the "
        "window as a matrix of booleans. speed-up: their time over flash_attn2's (medians), with "
        f"the middle half of the rounds. extra memory: peak beyond the inputs{passes}. max error"
        f"{what}: against float64{sample}.[/]"
    )


def out_of_tolerance(results: Sequence[Result]) -> list[str]:
    """Cases in which flash_attn2's error breaks the project's tolerance rule."""
    return [r.case.name for r in results if not r.errors.within_tolerance(FLASH_ATTN2)]


def throughput_unit(results: Sequence[Result]) -> tuple[str, float]:
    """The unit to show throughput in, and how many operations per second it is."""
    fastest = max(one.flops_per_second for r in results for one in r.measurements.values())
    return ("TFLOP/s", 1e12) if fastest >= 1e13 else ("GFLOP/s", 1e9)


def format_number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def format_time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def format_bytes(size: float) -> str:
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}" if size < 100 else f"{size:.0f} {unit}"
    return f"{size / 1024:.2f} GiB"


def write_json(
    path: Path, results: Sequence[Result], device: str, options: Mapping[str, Any], complete: bool
) -> None:
    """Everything that was measured, with every sample by its round; a line per case."""
    record = {
        "schema": _SCHEMA,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": describe_machine(device),
        "versions": {
            "flash_attn2": flash_attn2.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "commit": _commit(),
        },
        "build": flash_attn2.build_info(),
        "options": dict(options),
    }
    head = json.dumps(record, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(_result_record(result)) for result in results)
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def _result_record(result: Result) -> dict[str, Any]:
    contenders: dict[str, Any] = {
        name: {"unavailable": reason} for name, reason in result.unavailable.items()
    }
    for name, one in result.measurements.items():
        contenders[name] = dataclasses.asdict(one)
        contenders[name]["samples"] = {n: round(seconds, 9) for n, seconds in one.samples.items()}
        if name in result.ratios:
            contenders[name]["ratio"] = dataclasses.asdict(result.ratios[name])
    return {
        "case": dataclasses.asdict(result.case),
        "flops": result.flops,
        "errors": result.errors.contenders,
        "errors_of_plain_formula": result.errors.low,
        "share_checked": result.errors.checked,
        "contenders": contenders,
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware and system, without anything that names this particular machine."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        machine["gpu"] = properties.name
        machine["gpu_sms"] = properties.multi_processor_count
        machine["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda
    return machine


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(folder), *args]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    # Without this, an installed copy inside some other project would report that one's commit.
    if not git("ls-files", str(Path(__file__).name)):
        return None
    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += " (modified)"
    return commit

"""What a comparison of training runs shows: a table, raw JSON, and a plot."""

from __future__ import annotations

import datetime
import itertools
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import extras  # noqa: F401
import torch
from common import mebibytes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

import flash_attn2
from flash_attn2.bench.record import describe_machine

Results = dict[str, dict[str, Any]]  # what was measured, by attention; the first is ours


def print_table(results: Results, peak_tflops: float | None, console: Console) -> None:
    ours = next(iter(results))
    table = Table(box=box.HORIZONTALS)
    table.add_column("attention", no_wrap=True)
    headers = ["loss", "valid. loss", "tokens/s", "speed-up", "memory", "TFLOP/s"]
    for header in headers + (["MFU"] if peak_tflops else []):
        table.add_column(header, justify="right", no_wrap=True)
    for name, result in results.items():
        ratio = results[ours]["tokens_per_second"] / result["tokens_per_second"]
        tflops = result["flops_per_second"] / 1e12
        cells = [
            f"{result['loss'][-1]:.4f}",
            f"{result['validation_loss']:.4f}",
            f"{result['tokens_per_second']:,.0f}",
            "" if name == ours else f"{ratio:.2f}x",
            mebibytes(result["peak_bytes"]),
            f"{tflops:.3g}",
        ]
        if peak_tflops:
            cells.append(f"{tflops / peak_tflops:.1%}")
        table.add_row(name, *cells)
    console.print(table)
    if len(results) > 1:
        console.print(f"speed-up: of {ours} over the others. memory: peak of a step.")
    for a, b in itertools.combinations(results, 2):
        difference = largest_difference(results[a], results[b])
        console.print(f"The losses of {a} and {b} differ by at most {difference:.2g}.")


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Of the losses at any step."""
    return max(abs(x - y) for x, y in zip(a["loss"], b["loss"], strict=True))


def write_json(path: Path, record: dict[str, Any], results: Results) -> None:
    """`record`, the circumstances, and all of `results`, one line for each attention."""
    record = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(record["options"]["device"]),
        "versions": {
            "flash_attn2": flash_attn2.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "build": flash_attn2.build_info(),
        **record,
    }
    head = json.dumps(record, indent=1).removesuffix("\n}")
    lines = ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in results.items())
    path.write_text(f'{head},\n "results": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def running_mean(values: list[float], window: int) -> list[float]:
    return [statistics.fmean(values[i : i + window]) for i in range(len(values) - window + 1)]


def circumstances(device: str) -> str:
    """Of a picture: hardware and release."""
    machine = describe_machine(device)
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] > 1)
    hardware = machine.get("gpu", f"{machine['cpu']}, {threads}")
    return f"{hardware}, torch {torch.__version__}"


def tidy(axes: Any) -> None:
    """The look of all axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", axis="y")
    axes.set_axisbelow(True)
    axes.title.set_fontsize(10)


def plot(path: Path, record: dict[str, Any], results: Results) -> None:
    """Loss by step, loss by time, and tokens per second."""
    options, config = record["options"], record["config"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(
        f"GPT, {config['num_layers']} layers of {config['d_model']}, {options['dtype']}, documents "
        f"of up to {options['max_document']} bytes\n{circumstances(options['device'])}",
        fontsize=10,
    )
    by_step, by_time, speed = figure.subplots(1, 3)
    window = max(1, options["steps"] // 20)
    styles = [("#d1495b", "-", 1.6), ("#30638e", "--", 1.6), ("#9aa5b1", ":", 2.4)]
    for (name, result), (color, line, width) in zip(results.items(), styles, strict=False):
        style: Any = {"color": color, "linestyle": line, "linewidth": width, "label": name}
        by_step.plot(range(1, len(result["loss"]) + 1), result["loss"], **style)
        seconds = list(itertools.accumulate(result["seconds"]))
        by_time.plot(seconds[window - 1 :], running_mean(result["loss"], window), **style)
        bar = speed.bar(name, result["tokens_per_second"], color=color, width=0.6)
        speed.bar_label(bar, fmt="{:,.0f}", fontsize=9)
    by_step.set(xlabel="step", ylabel="training loss (nats per byte)", title="loss by step")
    by_time.set(xlabel="seconds in training steps", title=f"loss by time, mean of {window} steps")
    speed.set(title="tokens per second")
    by_step.legend(frameon=False)
    for axes in (by_step, by_time, speed):
        tidy(axes)
    figure.savefig(path, dpi=160)

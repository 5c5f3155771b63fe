"""The picture of long_documents.py: loss by step, tokens per second, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import extras  # noqa: F401
from gpt_report import circumstances, tidy
from matplotlib.figure import Figure

COLORS = {"block-sparse": "#d1495b", "dense": "#30638e"}


def plot(path: Path, record: dict[str, Any], results: dict[str, Any]) -> None:
    """`results` by length and attention, as long_documents.py measures them."""
    options, config = record["options"], record["config"]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(
        f"Encoder, {config['num_layers']} layers of {config['d_model']}, {options['dtype']}, "
        f"{options['tokens']} tokens a step\n{circumstances(options['device'])}",
        fontsize=10,
    )
    losses, speed, memory = figure.subplots(1, 3)
    _plot_losses(losses, results)
    _plot_bars(speed, results, "tokens_per_second", 1, "{:,.0f}")
    _plot_bars(memory, results, "peak_bytes", 2**20, "{:,.0f}")
    losses.set(xlabel="step", ylabel="loss (nats per hidden byte)", title="training loss")
    speed.set(xlabel="tokens of a document", title="tokens per second, more is better")
    memory.set(xlabel="tokens of a document", title="MiB at the peak of a step, less is better")
    for axes in (losses, speed, memory):
        tidy(axes)
    figure.savefig(path, dpi=160)


def _plot_losses(axes: Any, results: dict[str, Any]) -> None:
    styles = ["-", "--", ":", "-."]
    for i, (seqlen, runs) in enumerate(results.items()):
        for name, run in runs.items():
            steps = range(1, len(run["loss"]) + 1)
            label = f"{name}, {int(seqlen):,} tokens"
            axes.plot(steps, run["loss"], styles[i % 4], color=COLORS[name], label=label)
    axes.legend(frameon=False, fontsize=8)


def _plot_bars(axes: Any, results: dict[str, Any], key: str, unit: float, text: str) -> None:
    places = range(len(results))
    for i, (name, color) in enumerate(COLORS.items()):
        heights = [runs[name][key] / unit for runs in results.values()]
        where = [place + (i - 0.5) * 0.4 for place in places]
        bars = axes.bar(where, heights, width=0.38, color=color, label=name)
        axes.bar_label(bars, fmt=text, fontsize=8)
    axes.set_xticks(list(places), [f"{int(seqlen):,}" for seqlen in results])

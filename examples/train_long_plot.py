"""The picture of train_long.py: losses beside those of one process, memory, and bytes sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import extras  # noqa: F401
from gpt_report import circumstances, tidy
from matplotlib.figure import Figure

RED, BLUE, GREY = "#d1495b", "#30638e", "#9aa5b1"


def plot(path: Path, record: dict[str, Any], results: dict[str, Any]) -> None:
    """`results` of the ranks and of one process, in this order, as train_long.py measures them."""
    options, config = record["options"], record["config"]
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    figure.suptitle(
        f"GPT, {config['num_layers']} layers of {config['d_model']}, float32, sequences of "
        f"{options['tokens']:,} tokens on {options['ranks']} ranks: {options['scheme']} and "
        f"{options['parameters']}\n{circumstances('cpu')}",
        fontsize=10,
    )
    losses, differences, memory, sent = figure.subplots(1, 4)
    (name, ranks), (_, one) = results.items()
    steps = range(1, len(one["loss"]) + 1)
    losses.plot(steps, ranks["loss"], color=RED, label=name)
    losses.plot(steps, one["loss"], "--", color=BLUE, label="one process")
    losses.legend(frameon=False, fontsize=8)
    losses.set(xlabel="step", ylabel="loss (nats per byte)", title="training loss")
    relative = [abs(a - b) / b for a, b in zip(ranks["loss"], one["loss"], strict=True)]
    differences.plot(steps, relative, ".", color=RED)
    differences.axhline(1e-5, color=GREY, linestyle=":")
    differences.set(xlabel="step", yscale="log", title="difference of losses, relative")
    _plot_memory(memory, ranks, one)
    _plot_sent(sent, ranks)
    for axes in (losses, differences, memory, sent):
        tidy(axes)
    figure.savefig(path, dpi=160)


def _plot_memory(axes: Any, ranks: dict[str, Any], one: dict[str, Any]) -> None:
    names = ["one", *map(str, range(len(ranks["rows"])))]
    bottom = [x / 2**20 for x in (one["state_bytes"], *ranks["state_bytes"])]
    peak = [x / 2**20 for x in (one["peak_bytes"], *ranks["peak_bytes"])]
    axes.bar(names, bottom, color=BLUE, label="parameters, averages")
    bars = axes.bar(names, peak, bottom=bottom, color=RED, label="peak of a step beyond them")
    _label(axes, bars, bottom, peak)
    axes.set(xlabel="one process, and ranks", title="MiB of a process")


def _plot_sent(axes: Any, ranks: dict[str, Any]) -> None:
    names = list(map(str, range(len(ranks["rows"]))))
    attention = [x / 2**20 for x in ranks["attention_bytes_sent"]]
    parameters = [x / 2**20 for x in ranks["parameter_bytes_sent"]]
    axes.bar(names, attention, color=RED, label="attention: keys, values, gradients")
    bars = axes.bar(names, parameters, bottom=attention, color=BLUE, label="parameters")
    _label(axes, bars, attention, parameters)
    axes.set(xlabel="rank", title="MiB sent in a step")


def _label(axes: Any, bars: Any, lower: list[float], upper: list[float]) -> None:
    """Sums over the bars, and room for the legend."""
    totals = [a + b for a, b in zip(lower, upper, strict=True)]
    axes.bar_label(bars, [f"{total:.3g}" for total in totals], fontsize=8)
    axes.set_ylim(top=1.35 * max(totals))
    axes.legend(frameon=False, fontsize=8, loc="upper left")

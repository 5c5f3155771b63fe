"""Pictures of how FlashAttention works, drawn from the package's own plans, counts and results."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flash_attn2 import flash_attn_func, masks
from flash_attn2.io import balance, flash1, plot, report
from flash_attn2.io.counts import Pass
from flash_attn2.io.plans import FwdPlan, forward_plan
from flash_attn2.io.problem import Attention
from flash_attn2.io.schedules import FLASH1, FLASH2, STANDARD

_COLORS = ("#30638e", "#edae49", "#d1495b", "#9aa5b1", "#73a9cf")
_GB = 1e9
_LENGTHS = (1024, 2048, 4096, 8192, 16384)
_TOKENS = 16384  # of all sequences of a batch


def draw(directory: Path) -> None:
    """All of them, as SVG."""
    directory.mkdir(parents=True, exist_ok=True)
    problems = [Attention(n, batch=_TOKENS // n) for n in _LENGTHS]
    plot.write(directory / "io.svg", report.rows(problems))
    for name, picture in PICTURES.items():
        picture().savefig(directory / f"{name}.svg")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def traffic() -> Figure:
    """Bytes of global memory by tensor, forward, of standard attention and of both schedules."""
    problem = Attention(4096, batch=4)
    figure = _figure(9, 2.6)
    axes = figure.subplots()
    compared = (STANDARD, FLASH1, FLASH2)
    bars = {schedule.name: _by_tensor(schedule.forward(problem)) for schedule in compared}
    _stacked(axes, bars, _GB)
    axes.set_xlabel("GB of global memory, forward pass, perfect L2 cache")
    axes.set_title(str(problem), fontsize=10)
    return figure


def _by_tensor(direction: Pass) -> dict[str, float]:
    """Scores and probabilities, the tensors of the call, and sums that wait for more keys."""
    parts = {"q, k, v, out, lse": 0.0, "scores and probabilities": 0.0, "running sums": 0.0}
    kinds = {"scores": "scores and probabilities", "probs": "scores and probabilities"}
    kinds |= dict.fromkeys(("sums", "max", "sum"), "running sums")
    for kernel in direction.kernels:
        for tensors in (kernel.reads, kernel.writes):
            for name, traffic in tensors.items():
                parts[kinds.get(name, "q, k, v, out, lse")] += traffic.distinct
    return parts


def memory() -> Figure:
    """What one attention holds in training at its peak."""
    figure = _figure(9, 2.6)
    axes = figure.subplots()
    problem = Attention(4096, batch=4)
    linear = 2 * problem.key_bytes + 4 * problem.value_bytes
    flash = 4 * (problem.key_bytes + problem.value_bytes)
    bars = {
        STANDARD.name: {
            "tensors and their gradients": linear,
            "P, dP and dS": STANDARD.peak_bytes(problem) - linear,
            "lse and workspace": 0,
        },
        FLASH2.name: {
            "tensors and their gradients": flash,
            "P, dP and dS": 0,
            "lse and workspace": FLASH2.peak_bytes(problem) - flash,
        },
    }
    _stacked(axes, bars, _GB)
    axes.set_xlabel("GB held at the peak, training")
    axes.set_title(str(problem), fontsize=10)
    return figure


def shared() -> Figure:
    """Bytes through shared memory by instruction: who has to exchange what."""
    problem = Attention(8192, batch=2)
    bars = {}
    for schedule in (FLASH1, FLASH2):
        parts = [kernel.shared for kernel in schedule.forward(problem).kernels]
        bars[schedule.name] = {
            "operands of products": 128 * sum(x.ldmatrix for x in parts),
            "tiles from global memory": 128 * sum(x.cp_async for x in parts),
            "exchanged between warps, staged": 128 * sum(x.stores + x.loads for x in parts),
        }
    figure = _figure(9, 2.2)
    axes = figure.subplots()
    _stacked(axes, bars, _GB)
    axes.set_xlabel("GB through shared memory, forward pass")
    axes.set_title(str(problem), fontsize=10)
    return figure


def _stacked(axes: Axes, bars: Mapping[str, Mapping[str, float]], unit: float) -> None:
    """A horizontal bar for each name, of parts one after another."""
    names = list(bars)[::-1]
    left = dict.fromkeys(names, 0.0)
    for part, color in zip(next(iter(bars.values())), _COLORS, strict=False):
        widths = [bars[name][part] / unit for name in names]
        axes.barh(names, widths, left=[left[name] for name in names], color=color, label=part)
        for name, width in zip(names, widths, strict=True):
            left[name] += width
    for name, end in left.items():
        axes.annotate(f" {end:.3g}", (end, name), va="center", fontsize=9)
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def tiles() -> Figure:
    """The tiles that a causal forward pass visits, and the one that a CTA works on."""
    problem = Attention(1024, heads=1, causal=True)
    plan = forward_plan(problem)
    figure = _figure(5.2, 5)
    axes = figure.subplots()
    for block, (begin, end) in enumerate(plan.blocks):
        for tile in range(-(-problem.seqlen // plan.tile.block_n)):
            _tile(axes, plan, block, tile, begin <= tile < end)
    axes.set_xlim(0, problem.seqlen)
    axes.set_ylim(problem.seqlen, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    size = f"{plan.tile.block_m} x {plan.tile.block_n}"
    axes.set_title(f"tiles of {size}, one CTA per row of tiles", fontsize=10)
    return figure


def _tile(axes: Axes, plan: FwdPlan, block: int, tile: int, visited: bool) -> None:
    rows, columns = plan.tile.block_m, plan.tile.block_n
    on_diagonal = (tile + 1) * columns - 1 > block * rows
    color = "#f1f3f5" if not visited else _COLORS[4] if on_diagonal else _COLORS[0]
    corner = (tile * columns, block * rows)
    axes.add_patch(Rectangle(corner, columns, rows, facecolor=color, edgecolor="white"))


def online_softmax() -> Figure:
    """out and lse of one query after each block of keys: what the online softmax holds then."""
    chance = torch.Generator().manual_seed(0)
    head_dim, block, blocks = 64, 64, 16
    q = 2 * torch.randn(1, 1, 1, head_dim, generator=chance)
    k, v = torch.randn(2, 1, block * blocks, 1, head_dim, generator=chance)
    scores = (k[0, :, 0] @ q[0, 0, 0] * head_dim**-0.5).tolist()
    seen = range(block, block * blocks + 1, block)
    states: list[Any] = [flash_attn_func(q, k[:, :n], v[:, :n], return_lse=True) for n in seen]
    last = states[-1][0]
    figure = _figure(9, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(scores, ".", color=_COLORS[3], markersize=3, label="scores")
    largest = [max(scores[:n]) for n in seen]
    top.step([0, *seen], [largest[0], *largest], color=_COLORS[2], label="largest so far")
    top.plot(seen, [lse.item() for _, lse in states], "o-", color=_COLORS[0], label="lse so far")
    bottom.plot(
        seen,
        [(out - last).abs().max().item() for out, _ in states],
        "o-",
        color=_COLORS[0],
        label="largest difference of out so far to out after all keys",
    )
    bottom.set_xlabel("keys seen, in blocks of 64")
    top.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    bottom.legend(frameon=False, fontsize=8)
    for axes in (top, bottom):
        axes.grid(color="#e6e6e6")
    return figure


Bars = list[tuple[int, float, float]]  # slot, begin, end


def timeline(costs: Iterable[int], slots: int) -> Bars:
    """When each CTA runs and where: it starts where one ends first, as in `io.balance`."""
    free = [(0.0, slot) for slot in range(slots)]
    bars = []
    for cost in costs:
        begin, slot = heapq.heappop(free)
        bars.append((slot, begin, begin + cost))
        heapq.heappush(free, (begin + cost, slot))
    return bars


def partition() -> Figure:
    """CTAs on the multiprocessors of an A100: one per head, or one per block of queries."""
    plain, causal = Attention(8192), Attention(8192, causal=True)
    panels = {
        "FlashAttention-1": ([1] * plain.pairs, flash1.CTAS_PER_SM),
        "FlashAttention-2": _ctas(plain),
        "FlashAttention-2, causal": _ctas(causal),
    }
    figure = _figure(9, 6)
    for axes, (title, (costs, per_sm)) in zip(
        figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True
    ):
        slots = plain.device.sm_count * per_sm
        ideal = sum(costs) / slots
        bars = [(slot / per_sm, a / ideal, b / ideal) for slot, a, b in timeline(costs, slots)]
        height, last = 1 / per_sm, max(end for _, _, end in bars)
        corners = [[(a, y), (b, y), (b, y + height), (a, y + height)] for y, a, b in bars]
        # Those that follow each other in one place in turns, so that each is seen.
        before: Counter[float] = Counter()
        colors = []
        for place, _, _ in bars:
            colors.append((_COLORS[0], _COLORS[4])[before[place] % 2])
            before[place] += 1
        axes.add_collection(PolyCollection(corners, facecolors=colors))
        axes.autoscale_view()
        axes.axvline(1, color=_COLORS[2], linewidth=1)
        axes.set_ylim(0, plain.device.sm_count)
        axes.set_ylabel("multiprocessor", fontsize=8)
        axes.set_title(f"{title}: {len(bars)} CTAs, the last ends at {last:.2f}", fontsize=10)
    axes.set_xlabel("time; 1 is all multiprocessors evenly filled")
    return figure


def _ctas(problem: Attention) -> tuple[Sequence[int], int]:
    plan = forward_plan(problem)
    costs = list(reversed(balance.lengths(plan.blocks)))
    ordered = list(balance.schedule(costs, problem.pairs, plan.section))
    return ordered, plan.tile.ctas_per_sm


def patterns() -> Figure:
    """Masks as the kernels see them: blocks of 64 x 64."""
    n = 2048
    ids = torch.arange(n) // 450
    shown = {
        "causal()": masks.causal(),
        "window(255, 0)": masks.window(255, 0),
        "documents(ids) & causal()": masks.documents(ids) & masks.causal(),
        "bigbird(window=192, random_blocks=2)": masks.bigbird(window=192, random_blocks=2),
    }
    figure = _figure(9, 9)
    for axes, (name, pattern) in zip(figure.subplots(2, 2).flat, shown.items(), strict=True):
        pattern.build(n).plot(axes)
        axes.set_title(f"{name}\n{axes.get_title()}", fontsize=9)
    return figure


PICTURES: Mapping[str, Callable[[], Figure]] = {
    picture.__name__: picture
    for picture in (traffic, memory, shared, tiles, online_softmax, partition, patterns)
}

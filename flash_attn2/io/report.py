"""Counts as rows, as Markdown tables, and as a record for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flash_attn2.io import bigbird
from flash_attn2.io.claims import Claim
from flash_attn2.io.counts import Pass
from flash_attn2.io.problem import Attention
from flash_attn2.io.schedules import BIGBIRD, SCHEDULES, Schedule
from flash_attn2.masks.words import num_blocks

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))


@dataclass(frozen=True)
class Row:
    """What one schedule costs at one length."""

    seqlen: int
    batch: int
    schedule: str
    forward: Pass
    backward: Pass
    peak_bytes: int


def rows(problems: Sequence[Attention]) -> list[Row]:
    return [
        _row(problem, schedule)
        for problem in problems
        for schedule in SCHEDULES
        if schedule.serves(problem)
    ]


def _row(problem: Attention, schedule: Schedule) -> Row:
    return Row(
        problem.seqlen,
        problem.batch,
        schedule.name,
        schedule.forward(problem),
        schedule.backward(problem),
        schedule.peak_bytes(problem),
    )


def human(num_bytes: float) -> str:
    """Three digits and a decimal unit."""
    unit, size = next((u for u in _UNITS if num_bytes >= u[1]), _UNITS[-1])
    value = num_bytes / size
    return f"{value:.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"


def traffic_table(found: Sequence[Row]) -> str:
    """Global memory, and the memory that is held."""
    header = (
        "tokens",
        "batch",
        "schedule",
        "fwd: asked",
        "fwd: perfect L2",
        "bwd: asked",
        "bwd: perfect L2",
        "peak memory",
    )
    return markdown(
        header,
        [
            (
                row.seqlen,
                row.batch,
                row.schedule,
                *_memory_cells(row.forward),
                *_memory_cells(row.backward),
                human(row.peak_bytes),
            )
            for row in found
        ],
    )


def _memory_cells(direction: Pass) -> tuple[str, str]:
    return human(direction.memory.asked), human(direction.memory.distinct)


def work_table(found: Sequence[Row]) -> str:
    """Shared memory, tensor cores, CTAs and their balance."""
    header = ["tokens", "batch", "schedule"]
    for direction in ("fwd", "bwd"):
        header += [f"{direction}: shared", "MMAs", "CTAs", "balance"]
    return markdown(
        header,
        [
            (
                row.seqlen,
                row.batch,
                row.schedule,
                *_work_cells(row.forward),
                *_work_cells(row.backward),
            )
            for row in found
        ],
    )


def _work_cells(direction: Pass) -> tuple[str, ...]:
    main = direction.main
    return (
        human(direction.shared_bytes),
        f"{direction.mma:.3g}",
        str(main.ctas),
        f"{main.balance:.2f}",
    )


def needs_table(problems: Sequence[Attention], found: Sequence[Row]) -> str:
    """What is done under BigBird's mask, over what is needed."""
    header = ("tokens", "blocks", "share", "fwd: bytes asked", "fwd: MMAs", "bwd: MMAs")
    of_bigbird = [row for row in found if row.schedule == BIGBIRD.name]
    body = []
    served = [problem for problem in problems if BIGBIRD.serves(problem)]
    for problem, row in zip(served, of_bigbird, strict=True):
        needs, blocks = bigbird.needs(problem), bigbird.mask_of(problem).cols.numel()
        body.append(
            (
                problem.seqlen,
                blocks,
                f"{blocks / num_blocks(problem.seqlen) ** 2:.1%}",
                f"{row.forward.memory.asked / needs.forward_bytes:.3f}",
                f"{row.forward.mma / needs.forward_mma:.3f}",
                f"{row.backward.mma / needs.backward_mma:.3f}",
            )
        )
    return markdown(header, body)


def claims_table(found: Sequence[Claim]) -> str:
    return markdown(
        ("claimed", "counted", "what was counted"),
        [(claim.claim, claim.counted, claim.what) for claim in found],
    )


def markdown(header: Sequence[Any], body: Sequence[Sequence[Any]]) -> str:
    """A table that is aligned as plain text, too."""
    cells = [[str(cell) for cell in line] for line in (header, *body)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def record(problems: Sequence[Attention], found: Sequence[Row], papers: Sequence[Claim]) -> Any:
    """All of it, by kernels, for JSON."""
    return {
        "problems": [asdict(problem) for problem in problems],
        "rows": [asdict(row) for row in found],
        "claims": [asdict(claim) for claim in papers],
    }

"""FlashAttention-2's schedule: what this package's sm80 kernels do (`csrc/sm80`).

Forward, a CTA keeps one block of queries and goes through the keys that it sees. Backward, a CTA
keeps one block of keys, with their gradients, and goes through the queries that see it; those of
the queries are added up in memory. Everything is counted from the plans.
"""

from __future__ import annotations

from collections.abc import Sequence

from flash_attn2.io import balance
from flash_attn2.io.counts import SECTOR_BYTES, Kernel, Pass, Traffic, once
from flash_attn2.io.mainloops import (
    Work,
    backward_mma,
    backward_shared,
    forward_mma,
    forward_shared,
)
from flash_attn2.io.plans import BwdPlan, BwdTile, Tiles, backward_plan, forward_plan
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES, Attention


def forward(problem: Attention) -> Pass:
    plan = forward_plan(problem)
    tile = plan.tile
    costs = list(reversed(balance.lengths(plan.blocks)))  # the last queries first
    schedule = balance.schedule(costs, problem.pairs, plan.section)
    work = Work.dense(plan.grid, problem.pairs * sum(costs))
    keys, values = _rows_of(problem, plan.blocks, tile.block_n)
    kernel = Kernel(
        "FwdKernel",
        ctas=plan.grid,
        mma=forward_mma(tile, work),
        reads={"q": once(problem.key_bytes), "k": keys, "v": values},
        writes={"out": once(problem.value_bytes), "lse": once(problem.lse_bytes)},
        shared=forward_shared(tile, work),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )
    return Pass((kernel,))


def _rows_of(problem: Attention, blocks: Sequence[Tiles], size: int) -> tuple[Traffic, Traffic]:
    """Rows read in tiles of so many by blocks that go through them: as wide as keys, as values."""

    def rows(begin: int, end: int) -> int:
        return min(end * size, problem.seqlen) - min(begin * size, problem.seqlen)

    asked = sum(rows(begin, end) for begin, end in blocks)
    seen = [block for block in blocks if block[0] < block[1]]
    distinct = rows(min(begin for begin, _ in seen), max(end for _, end in seen))
    numbers = Traffic(asked, distinct) * (problem.pairs * ELEMENT_BYTES)
    return numbers * problem.head_dim, numbers * problem.width_v


def backward(problem: Attention) -> Pass:
    plan = backward_plan(problem)
    return Pass((row_stats(problem, plan), _main(problem, plan), grad_q(problem, plan)))


def _sums_bytes(problem: Attention, plan: BwdPlan) -> int:
    """Of dQ in float32, whole tiles."""
    return plan.rows_grid * plan.tile.block_m * plan.tile.head_dim * FLOAT_BYTES


def row_stats(problem: Attention, plan: BwdPlan) -> Kernel:
    """Before: D = sum(dO * O) of each row; clears the sums of dQ."""
    # A warp asks for four rows at once. Their numbers are 16 bytes, but memory moves sectors.
    rows = plan.rows_grid * plan.tile.block_m
    asked = rows // 4 * SECTOR_BYTES
    stats = Traffic(2 * asked, 2 * rows * FLOAT_BYTES)
    return Kernel(
        "RowStatsKernel",
        ctas=plan.rows_grid,
        reads={
            "out": once(problem.value_bytes),
            "grad_out": once(problem.value_bytes),
            "lse": Traffic(problem.rows // 4 * SECTOR_BYTES, problem.lse_bytes),
        },
        writes={"workspace": once(_sums_bytes(problem, plan)) + stats},
    )


def step_bytes(tile: BwdTile) -> tuple[int, int]:
    """Of a tile of queries: lse and D of its rows, and the sums of its dQ."""
    return 2 * tile.block_m * FLOAT_BYTES, tile.block_m * tile.head_dim * FLOAT_BYTES


def _main(problem: Attention, plan: BwdPlan) -> Kernel:
    tile = plan.tile
    costs = balance.lengths(plan.blocks)  # the first keys first
    schedule = balance.schedule(costs, problem.pairs, plan.section)
    visits = problem.pairs * sum(costs)
    queries, grad_out = _rows_of(problem, plan.blocks, tile.block_m)
    stats, sums = step_bytes(tile)
    seen = len({m for begin, end in plan.blocks for m in range(begin, end)}) * problem.pairs
    return Kernel(
        "BwdKernel",
        ctas=plan.grid,
        mma=backward_mma(tile, Work.dense(plan.grid, visits)),
        reads={
            "q": queries,
            "grad_out": grad_out,
            "k": once(problem.key_bytes),
            "v": once(problem.value_bytes),
            "workspace": Traffic(visits * stats, seen * stats),
        },
        writes={"grad_k": once(problem.key_bytes), "grad_v": once(problem.value_bytes)},
        adds={"workspace": Traffic(visits * sums, seen * sums)},
        shared=backward_shared(tile, Work.dense(plan.grid, visits)),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )


def grad_q(problem: Attention, plan: BwdPlan) -> Kernel:
    """After: rounds the sums of dQ."""
    sums = problem.rows * problem.head_dim * FLOAT_BYTES
    return Kernel(
        "GradQKernel",
        ctas=plan.rows_grid,
        reads={"workspace": once(sums)},
        writes={"grad_q": once(problem.key_bytes)},
    )

"""FlashAttention-2's schedule under a block mask: what the listed sm80 kernels do.

Forward, a CTA has one or two blocks of queries and goes through the blocks of keys that they list;
where only one of the two lists a block, the warps of the other rest. Backward, lists by keys are
derived first (`mask_columns`); a CTA then goes through the blocks of queries that list its keys.
Everything is counted from the lists and the plans, which look at no list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from flash_attn2._impl.problem import BLOCK
from flash_attn2.io import balance, flash2, mask_columns
from flash_attn2.io.counts import SECTOR_BYTES, Kernel, Pass, Traffic, once
from flash_attn2.io.lists import (
    INDEX_BYTES,
    OFFSET_BYTES,
    TILE_BYTES,
    ListedCta,
    Step,
    array_bytes,
    columns_of,
    forward_ctas,
    queue_sectors,
    rows_of,
)
from flash_attn2.io.mainloops import (
    Work,
    backward_mma,
    backward_shared,
    forward_mma,
    forward_shared,
)
from flash_attn2.io.plans import BwdPlan, FwdTile, backward_plan, forward_plan
from flash_attn2.io.problem import ELEMENT_BYTES, Attention
from flash_attn2.masks import BlockMask


def forward(problem: Attention, mask: BlockMask) -> Pass:
    """Raises ValueError for a mask of other lengths, or of several sequences or heads."""
    _check(problem, mask)
    plan = forward_plan(problem, mask)
    tile = plan.tile
    rows_each = tile.block_m // BLOCK
    per_block = BLOCK // tile.block_n  # steps
    ctas = forward_ctas(rows_of(mask), rows_each)
    costs = [len(cta.steps) * per_block for cta in ctas]
    listed = sum(step.listed for cta in ctas for step in cta.steps)
    work = Work(
        ctas=plan.grid,
        running=problem.pairs * sum(cost > 0 for cost in costs),
        steps=problem.pairs * sum(costs),
        worked=Fraction(problem.pairs * per_block * listed, rows_each),
    )
    schedule = balance.schedule(costs[::-1], problem.pairs, plan.section)  # the last queries first
    keys = _rows_of_blocks(problem, (step.block for cta in ctas for step in cta.steps))
    kernel = Kernel(
        "FwdKernel",
        ctas=work.ctas,
        mma=forward_mma(tile, work),
        reads={
            "q": once(_queries_that_see(problem, tile, costs)),
            "k": keys,
            "v": keys,
            **_forward_lists(problem, mask, tile, ctas),
        },
        writes={"out": once(problem.tensor_bytes), "lse": once(problem.lse_bytes)},
        shared=forward_shared(tile, work),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )
    return Pass((kernel,))


def _check(problem: Attention, mask: BlockMask) -> None:
    if problem.causal:
        raise ValueError("problem must not be causal with a mask, which can say so itself")
    if (mask.seqlen_q, mask.seqlen_k) != (problem.seqlen, problem.seqlen):
        raise ValueError(
            f"mask must be for the length of the problem, {problem.seqlen}, got "
            f"seqlen_q={mask.seqlen_q}, seqlen_k={mask.seqlen_k}"
        )


def _rows_of_blocks(problem: Attention, blocks: Iterable[int]) -> Traffic:
    """Rows of one tensor, read by blocks, some of them several times."""
    visited = list(blocks)
    row_bytes = problem.head_dim * ELEMENT_BYTES * problem.pairs
    asked, distinct = (
        sum(_rows(problem, block, BLOCK) for block in x) for x in (visited, set(visited))
    )
    return Traffic(asked * row_bytes, distinct * row_bytes)


def _rows(problem: Attention, block: int, size: int) -> int:
    """Of a block of so many, of which the last may be cut short."""
    return min(size, problem.seqlen - block * size)


def _queries_that_see(problem: Attention, tile: FwdTile, costs: Sequence[int]) -> int:
    """Bytes of Q of CTAs that have steps: others store zeros, and read none."""
    rows = sum(_rows(problem, m, tile.block_m) for m, cost in enumerate(costs) if cost > 0)
    return rows * problem.head_dim * ELEMENT_BYTES * problem.pairs


def _forward_lists(
    problem: Attention, mask: BlockMask, tile: FwdTile, ctas: Sequence[ListedCta]
) -> dict[str, Traffic]:
    rows = sum(len(cta.rows) for cta in ctas)
    of_queue = problem.pairs * sum(queue_sectors(cta.rows) for cta in ctas) * SECTOR_BYTES
    entries = array_bytes(mask.cols.numel(), INDEX_BYTES)
    partial = sum(step.partial for cta in ctas for step in cta.steps)
    looks = problem.pairs * tile.column_warps * BLOCK // tile.block_n  # at the bits of a block
    return {
        # Where a list begins and ends.
        "block_mask_offsets": Traffic(
            problem.pairs * rows * 2 * SECTOR_BYTES, array_bytes(rows + 1, OFFSET_BYTES)
        ),
        "block_mask_cols": Traffic(of_queue, entries),
        "block_mask_tiles": Traffic(of_queue, entries),
        "block_mask_bits": Traffic(looks * partial * TILE_BYTES, _tiles_bytes(ctas)),
    }


def _tiles_bytes(lists: Iterable[ListedCta] | Iterable[Sequence[Step]]) -> int:
    """Of the tiles of bits that are looked at."""
    steps = (step for x in lists for step in (x.steps if isinstance(x, ListedCta) else x))
    return len({tile for step in steps for tile in step.tiles if tile}) * TILE_BYTES


def backward(problem: Attention, mask: BlockMask) -> Pass:
    """Raises ValueError for a mask of other lengths, or of several sequences or heads."""
    _check(problem, mask)
    plan = backward_plan(problem, mask)
    rows = rows_of(mask)
    pack = max(plan.tile.block_n // BLOCK, 1)
    columns = columns_of(rows, -(-problem.seqlen // BLOCK), pack)
    return Pass(
        (
            *mask_columns.kernels(plan, rows, columns, pack),
            flash2.row_stats(problem, plan),
            _main(problem, plan, columns, pack),
            flash2.grad_q(problem, plan),
        )
    )


def _main(
    problem: Attention, plan: BwdPlan, columns: Sequence[Sequence[Step]], pack: int
) -> Kernel:
    tile, pairs = plan.tile, problem.pairs
    # CTAs of less than a block of keys share its list.
    lists = [columns[n * tile.block_n // (BLOCK * pack)] for n in range(plan.grid // pairs)]

    def steps_of(step: Step) -> int:
        return -(-_rows(problem, step.block, BLOCK) // tile.block_m)

    costs = [sum(map(steps_of, entries)) for entries in lists]
    every = [(step, steps_of(step)) for entries in lists for step in entries]
    work = Work(
        ctas=plan.grid,
        running=pairs * sum(cost > 0 for cost in costs),
        steps=pairs * sum(costs),
        worked=Fraction(pairs * sum(step.listed * count for step, count in every), pack),
    )
    queries = _rows_of_blocks(problem, (step.block for step, _ in every))
    keys = sum(_rows(problem, n, tile.block_n) for n, cost in enumerate(costs) if cost > 0)
    stats, sums = flash2.step_bytes(tile)
    seen = pairs * sum(map(steps_of, {step.block: step for step, _ in every}.values()))
    # Each query is a word, of which a key warp looks up those of 4 queries at once, in 2 sectors.
    looks = pairs * tile.key_warps * tile.block_m * SECTOR_BYTES // 2
    partial = sum(step.partial * count for step, count in every)
    shared = backward_shared(tile, work)
    schedule = balance.schedule(costs, pairs, plan.section)  # the first keys first
    return Kernel(
        "BwdKernel",
        ctas=work.ctas,
        mma=backward_mma(tile, work),
        reads={
            "q": queries,
            "grad_out": queries,
            **{x: once(keys * problem.head_dim * ELEMENT_BYTES * pairs) for x in ("k", "v")},
            "workspace": Traffic(work.steps * stats, seen * stats)
            + mask_columns.read_by_main(lists, columns, pairs),
            "block_mask_bits": Traffic(looks * partial // pack, _tiles_bytes(lists)),
        },
        writes={name: once(problem.tensor_bytes) for name in ("grad_k", "grad_v")},
        adds={"workspace": Traffic(work.steps * sums, seen * sums)},
        shared=mask_columns.with_entries(shared, lists, pairs),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )

"""FlashAttention-2's schedule under a block mask: what the listed sm80 kernels do.

Forward, a CTA has one or two blocks of queries and goes through the blocks of keys that they list;
where only one of the two lists a block, the warps of the other rest. Backward, lists by keys are
derived first (`mask_columns`); a CTA then goes through the blocks of queries that list its keys.
Long lists are cut into pieces, a CTA for each (`pieces`), which `piece_kernels` add up.
Everything is counted from the lists and the plans, which look at no list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from flash_attn2._impl.problem import BLOCK
from flash_attn2.io import balance, flash2, mask_columns, piece_kernels
from flash_attn2.io.counts import SECTOR_BYTES, Kernel, Pass, Traffic, once
from flash_attn2.io.lists import (
    INDEX_BYTES,
    OFFSET_BYTES,
    TILE_BYTES,
    Step,
    array_bytes,
    columns_of,
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
from flash_attn2.io.pieces import ListedCta, backward_ctas, forward_ctas
from flash_attn2.io.plans import BwdPlan, FwdTile, backward_plan, forward_plan
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES, Attention
from flash_attn2.masks import BlockMask


def forward(problem: Attention, mask: BlockMask) -> Pass:
    """Raises ValueError for a mask of other lengths, or of several sequences or heads."""
    _check(problem, mask)
    rows = rows_of(mask)
    plan = forward_plan(problem, mask)
    tile = plan.tile
    rows_each = tile.block_m // BLOCK
    per_block = BLOCK // tile.block_n  # steps
    ctas = forward_ctas(rows, rows_each)
    whole, cut = _whole_and_cut(ctas)
    running = [cta for cta in ctas if cta.steps]
    steps = per_block * sum(len(cta.steps) for cta in ctas)
    listed = sum(step.listed for cta in ctas for step in cta.steps)
    work = Work(
        stored=problem.pairs * len(whole),
        running=problem.pairs * len(running),
        steps=problem.pairs * steps,
        worked=Fraction(problem.pairs * per_block * listed, rows_each),
    )
    # Pieces first, then the last queries first.
    costs = [len(cta.steps) for cta in (*cut, *reversed(whole))]
    schedule = balance.schedule(costs, problem.pairs, plan.section)
    keys, values = _rows_of_blocks(problem, (step.block for cta in ctas for step in cta.steps))
    finished = problem.pairs * sum(_rows(problem, cta.block, tile.block_m) for cta in whole)
    left = piece_kernels.row_piece(problem, tile.block_m) * (problem.pairs * len(cut))
    warps = tile.row_warps * tile.column_warps
    kernel = Kernel(
        "FwdKernel",
        ctas=plan.grid,
        mma=forward_mma(tile, work),
        reads={
            "q": _rows_of_ctas(problem, tile.block_m, running)[0],
            "k": keys,
            "v": values,
            "workspace": piece_kernels.read_items(plan.listed, problem.pairs, warps),
            **_forward_lists(problem, mask, tile, ctas),
        },
        writes={
            "out": once(finished * problem.width_v * ELEMENT_BYTES),
            "lse": once(finished * FLOAT_BYTES),
            "workspace": left,
        },
        shared=forward_shared(tile, work),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )
    if plan.listed.sum_grid == 0:
        return Pass((kernel,))
    offsets = {"block_mask_offsets": array_bytes(mask.row_offsets.numel(), OFFSET_BYTES)}
    return Pass(
        (
            piece_kernels.order(plan.listed, offsets),
            kernel,
            piece_kernels.sum_rows(problem, plan.listed, tile.block_m, cut),
        )
    )


def _whole_and_cut(ctas: Sequence[ListedCta]) -> tuple[list[ListedCta], list[ListedCta]]:
    """Those that have all of their lists, and the pieces of others."""
    return [cta for cta in ctas if cta.pieces == 1], [cta for cta in ctas if cta.pieces > 1]


def _check(problem: Attention, mask: BlockMask) -> None:
    if problem.causal:
        raise ValueError("problem must not be causal with a mask, which can say so itself")
    if (mask.seqlen_q, mask.seqlen_k) != (problem.seqlen, problem.seqlen):
        raise ValueError(
            f"mask must be for the length of the problem, {problem.seqlen}, got "
            f"seqlen_q={mask.seqlen_q}, seqlen_k={mask.seqlen_k}"
        )


def _rows_of_blocks(problem: Attention, blocks: Iterable[int]) -> tuple[Traffic, Traffic]:
    """Rows read by blocks, some of them several times: as wide as keys, as values."""
    visited = list(blocks)
    asked, distinct = (
        sum(_rows(problem, block, BLOCK) for block in x) for x in (visited, set(visited))
    )
    return _of_both_widths(problem, Traffic(asked, distinct))


def _of_both_widths(problem: Attention, rows: Traffic) -> tuple[Traffic, Traffic]:
    numbers = rows * (problem.pairs * ELEMENT_BYTES)
    return numbers * problem.head_dim, numbers * problem.width_v


def _rows(problem: Attention, block: int, size: int) -> int:
    """Of a block of so many, of which the last may be cut short."""
    return min(size, problem.seqlen - block * size)


def _rows_of_ctas(
    problem: Attention, size: int, ctas: Sequence[ListedCta]
) -> tuple[Traffic, Traffic]:
    """Likewise a CTA's own rows, which those without a step do not read."""
    asked = sum(_rows(problem, cta.block, size) for cta in ctas)
    distinct = sum(_rows(problem, block, size) for block in {cta.block for cta in ctas})
    return _of_both_widths(problem, Traffic(asked, distinct))


def _forward_lists(
    problem: Attention, mask: BlockMask, tile: FwdTile, ctas: Sequence[ListedCta]
) -> dict[str, Traffic]:
    rows = sum(len(cta.rows) for cta in ctas)
    of_queue = problem.pairs * sum(queue_sectors(cta.rows) for cta in ctas) * SECTOR_BYTES
    searched = problem.pairs * sum(cta.searched for cta in ctas) * SECTOR_BYTES
    entries = array_bytes(mask.cols.numel(), INDEX_BYTES)
    partial = sum(step.partial for cta in ctas for step in cta.steps)
    looks = problem.pairs * tile.column_warps * BLOCK // tile.block_n  # at the bits of a block
    return {
        # Where a list begins and ends.
        "block_mask_offsets": Traffic(
            problem.pairs * rows * 2 * SECTOR_BYTES,
            array_bytes(mask.row_offsets.numel(), OFFSET_BYTES),
        ),
        "block_mask_cols": Traffic(of_queue + searched, entries),
        "block_mask_tiles": Traffic(of_queue, entries),
        "block_mask_bits": Traffic(looks * partial * TILE_BYTES, _tiles_bytes(ctas)),
    }


def _tiles_bytes(ctas: Sequence[ListedCta]) -> int:
    """Of the tiles of bits that are looked at."""
    steps = (step for cta in ctas for step in cta.steps)
    return len({tile for step in steps for tile in step.tiles if tile}) * TILE_BYTES


def backward(problem: Attention, mask: BlockMask) -> Pass:
    """Raises ValueError for a mask of other lengths, or of several sequences or heads."""
    _check(problem, mask)
    rows = rows_of(mask)
    plan = backward_plan(problem, mask)
    block_n = plan.tile.block_n
    pack = max(block_n // BLOCK, 1)
    columns = columns_of(rows, -(-problem.seqlen // BLOCK), pack)
    # CTAs of less than a block of keys share its list.
    ctas = [
        cta
        for cta in backward_ctas(columns, max(BLOCK // block_n, 1))
        if cta.block * block_n < problem.seqlen
    ]
    _, cut = _whole_and_cut(ctas)
    kernels = [
        *mask_columns.kernels(plan, rows, columns, pack),
        flash2.row_stats(problem, plan),
        _main(problem, plan, columns, ctas, pack),
        flash2.grad_q(problem, plan),
    ]
    if plan.listed.sum_grid > 0:
        lists = {"workspace": mask_columns.list_bytes(columns)}
        kernels.append(piece_kernels.order(plan.listed, lists))
        kernels.append(piece_kernels.sum_columns(problem, plan.listed, block_n, cut))
    return Pass(tuple(kernels))


def _main(
    problem: Attention,
    plan: BwdPlan,
    columns: Sequence[Sequence[Step]],
    ctas: Sequence[ListedCta],
    pack: int,
) -> Kernel:
    tile, pairs = plan.tile, problem.pairs

    def steps_of(step: Step) -> int:
        return -(-_rows(problem, step.block, BLOCK) // tile.block_m)

    whole, cut = _whole_and_cut(ctas)
    running = [cta for cta in ctas if cta.steps]
    every = [(step, steps_of(step)) for cta in ctas for step in cta.steps]
    work = Work(
        stored=pairs * len(whole),
        running=pairs * len(running),
        steps=pairs * sum(count for _, count in every),
        worked=Fraction(pairs * sum(step.listed * count for step, count in every), pack),
    )
    queries, grad_out = _rows_of_blocks(problem, (step.block for step, _ in every))
    keys, values = _rows_of_ctas(problem, tile.block_n, running)
    stats, sums = flash2.step_bytes(tile)
    seen = pairs * sum(map(steps_of, {step.block: step for step, _ in every}.values()))
    # Each query is a word, of which a key warp looks up those of 4 queries at once, in 2 sectors.
    looks = pairs * tile.key_warps * tile.twins * tile.block_m * SECTOR_BYTES // 2
    partial = sum(step.partial * count for step, count in every)
    # Pieces first, then the first keys first.
    costs = [sum(map(steps_of, cta.steps)) for cta in (*cut, *whole)]
    schedule = balance.schedule(costs, pairs, plan.section)
    finished = pairs * sum(_rows(problem, cta.block, tile.block_n) for cta in whole)
    left = pairs * len(cut) * piece_kernels.column_piece_bytes(problem, tile.block_n)
    return Kernel(
        "BwdKernel",
        ctas=plan.grid,
        mma=backward_mma(tile, work),
        reads={
            "q": queries,
            "grad_out": grad_out,
            "k": keys,
            "v": values,
            "workspace": Traffic(work.steps * stats, seen * stats)
            + mask_columns.read_by_main(ctas, columns, pairs)
            + piece_kernels.read_items(plan.listed, pairs, tile.key_warps * tile.query_warps),
            "block_mask_bits": Traffic(looks * partial // pack, _tiles_bytes(ctas)),
        },
        writes={
            "grad_k": once(finished * problem.head_dim * ELEMENT_BYTES),
            "grad_v": once(finished * problem.width_v * ELEMENT_BYTES),
            "workspace": once(left),
        },
        adds={"workspace": Traffic(work.steps * sums, seen * sums)},
        shared=mask_columns.with_entries(backward_shared(tile, work, listed=True), ctas, pairs),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )

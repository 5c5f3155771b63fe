"""FlashAttention-2's schedule: what this package's sm80 kernels do (`csrc/sm80`).

Forward, a CTA keeps one block of queries and goes through the keys that it sees. Backward, a CTA
keeps one block of keys, with their gradients, and goes through the queries that see it; those of
the queries are added up in memory. Everything is counted from the plans.
"""

from __future__ import annotations

from collections.abc import Sequence

from flash_attn2.io import balance
from flash_attn2.io.counts import SECTOR_BYTES, WAVEFRONT_BYTES, Kernel, Pass, Shared, Traffic, once
from flash_attn2.io.plans import BwdPlan, FwdPlan, Tiles, backward_plan, forward_plan
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES, Attention

_BLOCK = 16  # rows and columns of what ldmatrix reads and mma multiplies
_LDMATRIX = 4  # wavefronts of ldmatrix.x4
_MMA = 16 * 8 * 16


def forward(problem: Attention) -> Pass:
    plan = forward_plan(problem)
    tile = plan.tile
    costs = list(reversed(balance.lengths(plan.blocks)))  # the last queries first
    schedule = balance.schedule(costs, problem.pairs, plan.section)
    visits = problem.pairs * sum(costs)
    keys = _rows_of(problem, plan.blocks, tile.block_n)
    kernel = Kernel(
        "FwdKernel",
        ctas=plan.grid,
        mma=visits * 2 * tile.block_m * tile.block_n * tile.head_dim // _MMA,
        reads={"q": once(problem.tensor_bytes), "k": keys, "v": keys},
        writes={"out": once(problem.tensor_bytes), "lse": once(problem.lse_bytes)},
        shared=_forward_shared(plan, visits),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )
    return Pass((kernel,))


def _rows_of(problem: Attention, blocks: Sequence[Tiles], size: int) -> Traffic:
    """Rows of one tensor, read in tiles of so many by blocks that go through them."""
    row_bytes = problem.head_dim * ELEMENT_BYTES * problem.pairs

    def rows(begin: int, end: int) -> int:
        return min(end * size, problem.seqlen) - min(begin * size, problem.seqlen)

    asked = sum(rows(begin, end) for begin, end in blocks)
    seen = [block for block in blocks if block[0] < block[1]]
    distinct = rows(min(begin for begin, _ in seen), max(end for _, end in seen))
    return Traffic(asked * row_bytes, distinct * row_bytes)


def _forward_shared(plan: FwdPlan, visits: int) -> Shared:
    tile = plan.tile
    rows, keys, depth = (n // _BLOCK for n in (tile.block_m, tile.block_n, tile.head_dim))
    # Every row warp reads K and V; warps that share rows each read the queries, and halves of V.
    operands = 2 * tile.row_warps * keys * depth
    queries = tile.column_warps * rows * depth
    exchanged = rows * keys if tile.column_warps == 2 else 0  # P, from one warp to its partner
    tile_of_q = tile.block_m * tile.head_dim * ELEMENT_BYTES // WAVEFRONT_BYTES
    tile_of_k = tile.block_n * tile.head_dim * ELEMENT_BYTES // WAVEFRONT_BYTES
    blocks_read = visits * (operands + exchanged)
    blocks_read += queries * (plan.grid if tile.q_in_registers else visits)
    return Shared(
        cp_async=visits * 2 * tile_of_k + plan.grid * tile_of_q,
        ldmatrix=blocks_read * _LDMATRIX,
        stores=plan.grid * tile_of_q + visits * exchanged * _LDMATRIX,  # the output is staged
        loads=plan.grid * tile_of_q,
    )


def backward(problem: Attention) -> Pass:
    plan = backward_plan(problem)
    return Pass((_row_stats(problem, plan), _main(problem, plan), _grad_q(problem, plan)))


def _sums_bytes(problem: Attention, plan: BwdPlan) -> int:
    """Of dQ in float32, whole tiles."""
    return plan.rows_grid * plan.tile.block_m * plan.tile.head_dim * FLOAT_BYTES


def _row_stats(problem: Attention, plan: BwdPlan) -> Kernel:
    """Before: D = sum(dO * O) of each row; clears the sums of dQ."""
    # A warp asks for four rows at once. Their numbers are 16 bytes, but memory moves sectors.
    rows = plan.rows_grid * plan.tile.block_m
    asked = rows // 4 * SECTOR_BYTES
    stats = Traffic(2 * asked, 2 * rows * FLOAT_BYTES)
    return Kernel(
        "RowStatsKernel",
        ctas=plan.rows_grid,
        reads={
            "out": once(problem.tensor_bytes),
            "grad_out": once(problem.tensor_bytes),
            "lse": Traffic(problem.rows // 4 * SECTOR_BYTES, problem.lse_bytes),
        },
        writes={"workspace": once(_sums_bytes(problem, plan)) + stats},
    )


def _main(problem: Attention, plan: BwdPlan) -> Kernel:
    tile = plan.tile
    costs = balance.lengths(plan.blocks)  # the first keys first
    schedule = balance.schedule(costs, problem.pairs, plan.section)
    visits = problem.pairs * sum(costs)
    queries = _rows_of(problem, plan.blocks, tile.block_m)
    stats = 2 * tile.block_m * FLOAT_BYTES  # of a tile of queries
    sums = tile.block_m * tile.head_dim * FLOAT_BYTES
    seen = len({m for begin, end in plan.blocks for m in range(begin, end)}) * problem.pairs
    return Kernel(
        "BwdKernel",
        ctas=plan.grid,
        mma=visits * 5 * tile.block_m * tile.block_n * tile.head_dim // _MMA,
        reads={
            "q": queries,
            "grad_out": queries,
            "k": once(problem.tensor_bytes),
            "v": once(problem.tensor_bytes),
            "workspace": Traffic(visits * stats, seen * stats),
        },
        writes={name: once(problem.tensor_bytes) for name in ("grad_k", "grad_v")},
        adds={"workspace": Traffic(visits * sums, seen * sums)},
        shared=_backward_shared(plan, visits),
        balance=balance.makespan_over_ideal(schedule, problem.device.sm_count * tile.ctas_per_sm),
    )


def _backward_shared(plan: BwdPlan, visits: int) -> Shared:
    tile = plan.tile
    queries, keys, depth = (n // _BLOCK for n in (tile.block_m, tile.block_n, tile.head_dim))
    warps = tile.key_warps * tile.query_warps
    exchanges = tile.query_warps > 1
    # S = Q K' and dP = dO V': all key warps read the tiles of queries; the query warps K and V, for
    # each chunk of their queries, unless they hold them.
    held = tile.query_warps * keys * depth
    chunks = tile.block_m // (tile.query_warps * tile.chunk)
    read_anew = 2 - tile.k_in_registers - tile.v_in_registers
    # dV += P' dO and dK += dS' Q: again all key warps, each query warp its columns; P' and dS' of
    # other query warps come through shared memory.
    fetched = 2 * (tile.query_warps - 1) * keys * queries
    # dQ += dS K: a warp takes 32 queries and its share of the columns.
    row_warps = tile.block_m // 32
    grad_q = warps // row_warps * queries * keys + row_warps * keys * depth
    a_visit = (
        2 * tile.key_warps * queries * depth * 2 + read_anew * chunks * held + fetched + grad_q
    )
    once_a_cta = (2 - read_anew) * held

    tile_of_q = tile.block_m * tile.head_dim * ELEMENT_BYTES // WAVEFRONT_BYTES
    tile_of_k = tile.block_n * tile.head_dim * ELEMENT_BYTES // WAVEFRONT_BYTES
    tile_of_p = tile.block_m * tile.block_n * ELEMENT_BYTES // WAVEFRONT_BYTES
    stats = 2 * tile.block_m * FLOAT_BYTES // WAVEFRONT_BYTES
    # Of each 8 queries a warp loads lse and D, of which all of its lanes have a copy.
    copies = tile.key_warps * 2 * tile.block_m // 8
    return Shared(
        cp_async=plan.grid * 2 * tile_of_k + visits * (2 * tile_of_q + stats),
        ldmatrix=(visits * a_visit + plan.grid * once_a_cta) * _LDMATRIX,
        stores=visits * (1 + exchanges) * tile_of_p + plan.grid * 2 * tile_of_k,
        loads=visits * copies + plan.grid * 2 * tile_of_k,
    )


def _grad_q(problem: Attention, plan: BwdPlan) -> Kernel:
    """After: rounds the sums of dQ."""
    sums = problem.rows * problem.head_dim * FLOAT_BYTES
    return Kernel(
        "GradQKernel",
        ctas=plan.rows_grid,
        reads={"workspace": once(sums)},
        writes={"grad_q": once(problem.tensor_bytes)},
    )

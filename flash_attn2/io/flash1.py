"""FlashAttention-1's schedule (`csrc/sm80/flash1`; algorithms 1 and 4 of Dao et al. 2022).

One CTA for each batch and head. The outer loop goes over blocks of keys and values, the inner one
over all queries, whose output O and statistics m and l come from memory and go back there for each
block of keys. Warps slice the keys, so all of them have a share of each output, and the shares are
added up through shared memory. Backward likewise, with dQ in the place of O; D is computed anew
from O and dO.
"""

from __future__ import annotations

from flash_attn2.io.balance import waves_over_ideal
from flash_attn2.io.counts import SECTOR_BYTES, WAVEFRONT_BYTES, Kernel, Pass, Shared, Traffic, once
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES, Attention

# As in csrc/sm80/flash1/args.h.
HEAD_DIM = 64
BLOCK_M, BLOCK_N = 16, 256
BWD_BLOCK_N = 128
WARPS = 4
CTAS_PER_SM = 1

_MMA = 16 * 8 * 16
_LDMATRIX = 4


def forward(problem: Attention) -> Pass:
    """Raises ValueError for another head dim than the kernel's."""
    _check(problem)
    blocks = _rows_of_blocks(problem, BLOCK_N)
    visited = [sum(rows) for rows in blocks]  # queries, by blocks of keys
    visits = problem.pairs * sum(len(rows) for rows in blocks)
    again = problem.pairs * sum(visited[1:])  # rows that have seen keys before
    kept = problem.pairs * sum(visited) - problem.rows  # rows that will see more
    query_bytes = problem.key_bytes // problem.rows
    q = Traffic(problem.pairs * sum(visited) * query_bytes, problem.key_bytes)
    kernel = Kernel(
        "Flash1Forward",
        ctas=problem.pairs,
        mma=visits * 2 * BLOCK_M * BLOCK_N * HEAD_DIM // _MMA,
        reads={
            "q": q,
            "k": once(problem.key_bytes),
            "v": once(problem.key_bytes),
            "sums": _floats(again * HEAD_DIM, _distinct(problem, BLOCK_N) * HEAD_DIM),
            **{name: _by_fours(again, _distinct(problem, BLOCK_N)) for name in ("max", "sum")},
        },
        writes={
            "out": once(problem.key_bytes),
            "lse": _by_fours(problem.rows, problem.rows),
            "sums": _floats(kept * HEAD_DIM, _distinct(problem, BLOCK_N) * HEAD_DIM),
            **{name: _by_fours(kept, _distinct(problem, BLOCK_N)) for name in ("max", "sum")},
        },
        shared=_forward_shared(problem, len(blocks), visits, problem.pairs * sum(visited)),
        balance=waves_over_ideal(problem.pairs, problem.device.sm_count * CTAS_PER_SM),
    )
    return Pass((kernel,))


def serves(problem: Attention) -> bool:
    """Whether there are kernels of such widths."""
    return problem.head_dim == problem.width_v == HEAD_DIM


def _check(problem: Attention) -> None:
    if not serves(problem):
        raise ValueError(f"the kernels of flash1 have head_dim {HEAD_DIM}, got {problem.widths}")


def _rows_of_blocks(problem: Attention, block_n: int) -> list[list[int]]:
    """Of each block of keys, the blocks of queries that go by: how many rows they have."""
    n = problem.seqlen
    first = [key // BLOCK_M * BLOCK_M if problem.causal else 0 for key in range(0, n, block_n)]
    return [[min(BLOCK_M, n - row) for row in range(begin, n, BLOCK_M)] for begin in first]


def _distinct(problem: Attention, block_n: int) -> int:
    """Rows that see more than one block of keys."""
    unseen = block_n if problem.causal else 0
    return 0 if problem.seqlen <= block_n else problem.pairs * (problem.seqlen - unseen)


def _floats(asked: int, distinct: int) -> Traffic:
    return Traffic(asked * FLOAT_BYTES, distinct * FLOAT_BYTES)


def _by_fours(asked: int, distinct: int) -> Traffic:
    """A number of each row: a warp asks for those of four rows, half a sector, at once."""
    return Traffic(asked // 4 * SECTOR_BYTES, distinct * FLOAT_BYTES)


def _forward_shared(problem: Attention, key_blocks: int, visits: int, rows: int) -> Shared:
    depth, keys = HEAD_DIM // 16, BLOCK_N // 16
    # All warps read the queries; each its slice of K and V.
    operands = WARPS * depth + 2 * keys * depth
    row = HEAD_DIM * ELEMENT_BYTES // WAVEFRONT_BYTES
    share = HEAD_DIM * FLOAT_BYTES // WAVEFRONT_BYTES  # of a row's output
    exchanged = 2 * 2  # m and l of a warp, in two halves
    looked_up = 2 * WARPS + 2 * WARPS  # m by the lanes of a row, m and l again when adding up
    return Shared(
        cp_async=(problem.pairs * key_blocks * 2 * BLOCK_N + visits * BLOCK_M) * row,
        ldmatrix=visits * operands * _LDMATRIX,
        stores=visits * WARPS * (BLOCK_M * share + exchanged),
        loads=WARPS * (rows * share + visits * looked_up),
    )


def backward(problem: Attention) -> Pass:
    """Raises ValueError for another head dim than the kernel's."""
    _check(problem)
    blocks = _rows_of_blocks(problem, BWD_BLOCK_N)
    rows = problem.pairs * sum(sum(block) for block in blocks)  # by blocks of keys
    visits = problem.pairs * sum(len(block) for block in blocks)
    again = problem.pairs * sum(sum(block) for block in blocks[1:])
    queries = Traffic(rows * HEAD_DIM * ELEMENT_BYTES, problem.key_bytes)
    sums = _distinct(problem, BWD_BLOCK_N) * HEAD_DIM
    kernel = Kernel(
        "Flash1Backward",
        ctas=problem.pairs,
        mma=visits * 5 * BLOCK_M * BWD_BLOCK_N * HEAD_DIM // _MMA,
        reads={
            **dict.fromkeys(("q", "out", "grad_out"), queries),
            **{name: once(problem.key_bytes) for name in ("k", "v")},
            "lse": _by_fours(rows, problem.rows),
            "sums": _floats(again * HEAD_DIM, sums),
        },
        writes={
            **{name: once(problem.key_bytes) for name in ("grad_q", "grad_k", "grad_v")},
            "sums": _floats((rows - problem.rows) * HEAD_DIM, sums),
        },
        shared=_backward_shared(problem, len(blocks), visits, rows),
        balance=waves_over_ideal(problem.pairs, problem.device.sm_count * CTAS_PER_SM),
    )
    return Pass((kernel,))


def _backward_shared(problem: Attention, key_blocks: int, visits: int, rows: int) -> Shared:
    depth, keys = HEAD_DIM // 16, BWD_BLOCK_N // 16
    # S and dP: each warp its slice of K or V, and all queries; dV and dK: all queries; dQ: dS and K
    # of the warp's slice.
    operands = 2 * (keys + WARPS) * depth + 2 * WARPS * depth + keys + keys * depth
    row = HEAD_DIM * ELEMENT_BYTES // WAVEFRONT_BYTES
    share = HEAD_DIM * FLOAT_BYTES // WAVEFRONT_BYTES  # of a row's dQ
    grad_scores = BLOCK_M * BWD_BLOCK_N * ELEMENT_BYTES // WAVEFRONT_BYTES
    looked_up = 2 * BLOCK_M // 4  # lse and D, by each warp: a lane needs four of each
    tiles = problem.pairs * key_blocks * 2 * BWD_BLOCK_N * row
    return Shared(
        cp_async=tiles + visits * 2 * BLOCK_M * row,
        ldmatrix=visits * operands * _LDMATRIX,
        stores=visits * (grad_scores + WARPS * (BLOCK_M * share + 2)) + tiles,
        # Shares of dQ; dO for D; dK and dV on their way out.
        loads=rows * (WARPS * share + row) + visits * WARPS * looked_up + 2 * problem.rows * row,
    )

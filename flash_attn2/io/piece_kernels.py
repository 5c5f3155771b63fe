"""The kernels before and after a launch some of whose lists are cut (`csrc/sm80/lists/order.h`,
`forward/sum_pieces.h`, `backward/sum_pieces.h`): one places the work, the other adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flash_attn2.io.counts import SECTOR_BYTES, Kernel, Traffic, once
from flash_attn2.io.pieces import ListedCta
from flash_attn2.io.plans import ListedPlan
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES, Attention

ORDER, SUM_ROWS, SUM_COLUMNS = NAMES = ("WorkOrderKernel", "SumPiecesKernel", "SumColumnsKernel")

_ITEM_BYTES = 32  # what a CTA is to do, a sector
_ITEM_REQUESTS = 3  # in which nvcc has a warp read its members
_STATE_BYTES = 2 * FLOAT_BYTES  # of a row of a piece
_WARPS = 8  # of a CTA that adds up
_CHUNK = 4  # columns of one of its threads


def read_items(listed: ListedPlan, pairs: int, warps: int) -> Traffic:
    """By the CTAs of the main kernel, each of whose warps looks up its work."""
    if listed.sum_grid == 0:
        return once(0)
    items = (listed.lists + listed.capacity) * _ITEM_BYTES
    return Traffic(_ITEM_REQUESTS * items * pairs * warps, items)


def order(listed: ListedPlan, reads: Mapping[str, int]) -> Kernel:
    """Places the work; `reads` is what is known of the lists, once."""
    items = (listed.lists + listed.capacity) * _ITEM_BYTES
    return Kernel(
        ORDER,
        ctas=listed.units,
        reads={name: once(size) for name, size in reads.items()},
        writes={"workspace": once(items)},
    )


def row_piece(problem: Attention, block_m: int) -> Traffic:
    """What a piece of a tile of queries leaves: outputs and states of its rows.

    The two members of a state are stored one after the other, in the same sectors.
    """
    states = block_m * _STATE_BYTES
    return once(block_m * problem.width_v * FLOAT_BYTES) + Traffic(2 * states, states)


def sum_rows(
    problem: Attention, listed: ListedPlan, block_m: int, cut: Sequence[ListedCta]
) -> Kernel:
    """`cut` are all pieces."""
    parts = sum(_rows(problem, cta, block_m) for cta in cut)
    rows = problem.pairs * sum(_rows(problem, cta, block_m) for cta in _blocks(cut))
    states = problem.pairs * parts * _STATE_BYTES
    looked_up = problem.pairs * parts * problem.width_v // (_CHUNK * 32) * SECTOR_BYTES
    return Kernel(
        SUM_ROWS,
        ctas=listed.sum_grid,
        reads={
            "workspace": once(problem.pairs * parts * problem.width_v * FLOAT_BYTES)
            + Traffic(max(looked_up, states), states)
            + _places(listed, problem.pairs),
        },
        writes={
            "out": once(rows * problem.width_v * ELEMENT_BYTES),
            "lse": once(rows * FLOAT_BYTES),
        },
    )


def column_piece_bytes(problem: Attention, block_n: int) -> int:
    """What a piece of a block of keys leaves: dK and dV."""
    return block_n * (problem.head_dim + problem.width_v) * FLOAT_BYTES


def sum_columns(
    problem: Attention, listed: ListedPlan, block_n: int, cut: Sequence[ListedCta]
) -> Kernel:
    """`cut` are all pieces."""
    parts = sum(_rows(problem, cta, block_n) for cta in cut)
    rows = problem.pairs * sum(_rows(problem, cta, block_n) for cta in _blocks(cut))
    sums = problem.pairs * parts * (problem.head_dim + problem.width_v) * FLOAT_BYTES
    return Kernel(
        SUM_COLUMNS,
        ctas=listed.sum_grid,
        reads={
            "workspace": once(sums) + _places(listed, problem.pairs),
        },
        writes={
            "grad_k": once(rows * problem.head_dim * ELEMENT_BYTES),
            "grad_v": once(rows * problem.width_v * ELEMENT_BYTES),
        },
    )


def _places(listed: ListedPlan, pairs: int) -> Traffic:
    """CTAs go through all places of pieces, of which some have none."""
    places = listed.capacity * _ITEM_BYTES
    return Traffic(places * pairs * _WARPS, places)


def _blocks(cut: Sequence[ListedCta]) -> list[ListedCta]:
    """One piece of each block."""
    return list({cta.block: cta for cta in cut}.values())


def _rows(problem: Attention, cta: ListedCta, size: int) -> int:
    return min(size, problem.seqlen - cta.block * size)

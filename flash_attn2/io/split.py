"""Decoding by the sm80 split kernel (`csrc/sm80/split`): what it moves and multiplies.

The heads of a group are rows of a tile, so that a cache is read once for all of them, or once for
each tile where they are more. CTAs share the splits of a sequence; what several leave, the combine
kernel adds up. Shared memory is not counted.
"""

from __future__ import annotations

from flash_attn2.io.balance import waves_over_ideal
from flash_attn2.io.counts import MMA_FLOP, SECTOR_BYTES, Kernel, Pass, Traffic, once
from flash_attn2.io.decoding import MAX_WIDTH_V, Decoding
from flash_attn2.io.problem import FLOAT_BYTES
from flash_attn2.io.split_plan import SplitPlan, split_plan

SPLIT, COMBINE = "SplitKernel", "CombineKernel"
_STATE_MEMBERS = 2  # of a row of a split, a float each
_WARP = 32
_ROWS_AT_ONCE = 4  # whose results a warp stores


def forward(problem: Decoding) -> Pass:
    plan = split_plan(problem)
    main = _split(problem, plan)
    return Pass((main,) if plan.combine_grid == 0 else (main, _combine(problem, plan)))


def _split(problem: Decoding, plan: SplitPlan) -> Kernel:
    tile = plan.tile
    finished = {"out": once(problem.out_bytes), "lse": _lse(problem, _ROWS_AT_ONCE)}
    requests = plan.stored * problem.batch * problem.heads_kv * -(-problem.group // _ROWS_AT_ONCE)
    stored = {"workspace": _partials(problem, plan, requests)}
    return Kernel(
        SPLIT,
        ctas=plan.grid,
        mma=_mma(problem, plan),
        reads={
            "q": Traffic(problem.query_bytes * plan.ctas, problem.query_bytes),
            **_cache(problem, plan),
        },
        writes=finished if plan.stored == 1 else stored,
        balance=waves_over_ideal(plan.grid, problem.device.sm_count * tile.ctas_per_sm),
    )


def _mma(problem: Decoding, plan: SplitPlan) -> int:
    """Whole tiles; column warps with whole scores multiply them anew."""
    tile = plan.tile
    keys = -(-problem.seqlen_k // tile.block_n) * tile.block_n
    scores = tile.column_warps if tile.whole_scores else 1
    depth = scores * tile.head_dim + tile.head_dim_v
    rows = problem.batch * problem.heads_kv * plan.row_blocks * tile.block_m
    return 2 * rows * keys * depth // MMA_FLOP


def _cache(problem: Decoding, plan: SplitPlan) -> dict[str, Traffic]:
    """Keys and values, and their scales. Values that lie in the keys are the same sectors: latents
    bring both at once, other kernels ask twice."""
    keys = Traffic(problem.key_bytes * plan.row_blocks, problem.key_bytes)
    values = Traffic(problem.value_bytes * plan.row_blocks, problem.value_bytes)
    reads = {"k": keys, "v": values}
    if problem.shared:
        again = 0 if _reads_latents(problem) else values.asked
        reads = {"k": keys + Traffic(again, 0)}
    if problem.scales is not None:
        reads["k_descale"] = _scales(problem, plan, plan.tile.head_dim)
        reads["v_descale"] = _scales(problem, plan, plan.tile.head_dim_v)
    return reads


def _reads_latents(problem: Decoding) -> bool:
    """As `reads_latents` of `csrc/sm80/plan_forward.cpp` has it for a cache without pages."""
    return problem.scales is None and problem.head_dim > MAX_WIDTH_V


def _scales(problem: Decoding, plan: SplitPlan, width: int) -> Traffic:
    """A warp asks for those of 32 rows at once: of as many groups of neighbouring rows as it copies
    in turn."""
    asked = problem.cached_rows * plan.row_blocks
    if problem.scales == "sequence":
        return Traffic(asked // _WARP * SECTOR_BYTES, problem.scale_bytes)
    neighbours = _WARP // (8 if width % 64 == 0 else 4)
    apart = problem.heads_kv * FLOAT_BYTES  # bytes from row to row
    sectors = max(1, min(neighbours, neighbours * apart // SECTOR_BYTES))
    return Traffic(asked // neighbours * sectors * SECTOR_BYTES, problem.scale_bytes)


def _lse(problem: Decoding, rows_at_once: int) -> Traffic:
    """Stored for so many heads of a group at once, which lie side by side."""
    requests = problem.batch * problem.heads_kv * -(-problem.group // rows_at_once)
    sectors = -(-problem.batch * problem.heads * FLOAT_BYTES // SECTOR_BYTES)
    return Traffic(requests * SECTOR_BYTES, sectors * SECTOR_BYTES)


def _partials(problem: Decoding, plan: SplitPlan, requests: int) -> Traffic:
    """Outputs and states of rows. Members of states are moved apart, by so many requests each."""
    rows = plan.stored * problem.batch * problem.heads
    states = Traffic(_STATE_MEMBERS * requests * SECTOR_BYTES, rows * _STATE_MEMBERS * FLOAT_BYTES)
    return once(rows * problem.width_v * FLOAT_BYTES) + states


def _combine(problem: Decoding, plan: SplitPlan) -> Kernel:
    """A CTA for each row."""
    requests = plan.stored * problem.batch * problem.heads
    return Kernel(
        COMBINE,
        ctas=plan.combine_grid,
        reads={"workspace": _partials(problem, plan, requests)},
        writes={"out": once(problem.out_bytes), "lse": _lse(problem, rows_at_once=1)},
    )

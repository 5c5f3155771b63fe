"""What the main loops of the sm80 kernels compute and move in shared memory, dense or listed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flash_attn2.io.counts import WAVEFRONT_BYTES, Shared
from flash_attn2.io.plans import BwdTile, FwdTile
from flash_attn2.io.problem import ELEMENT_BYTES, FLOAT_BYTES

_BLOCK = 16  # rows and columns of what ldmatrix reads and mma multiplies
_LDMATRIX = 4  # wavefronts of ldmatrix.x4
_MMA = 16 * 8 * 16


@dataclass(frozen=True)
class Work:
    """Of the CTAs of a launch, which go through tiles of the other side in steps."""

    stored: int  # that store what they have computed, through shared memory
    running: int  # those that have steps
    steps: int
    worked: Fraction  # steps, as far as warps work in them: under a block mask some may rest

    @staticmethod
    def dense(ctas: int, steps: int) -> Work:
        return Work(ctas, ctas, steps, Fraction(steps))


def forward_mma(tile: FwdTile, work: Work) -> int:
    """S = Q K' and O += P V; warps with whole scores multiply them anew."""
    scores = tile.column_warps if tile.whole_scores else 1
    depth = scores * tile.head_dim + tile.head_dim_v
    return int(work.worked * tile.block_m * tile.block_n * depth / _MMA)


def forward_shared(tile: FwdTile, work: Work) -> Shared:
    rows, keys = tile.block_m // _BLOCK, tile.block_n // _BLOCK
    depth, depth_v = tile.head_dim // _BLOCK, tile.head_dim_v // _BLOCK
    # Every row warp reads K and V; warps that share rows each read the queries, all or half of K
    # and their columns of V.
    read_k = tile.column_warps if tile.whole_scores else 1
    operands = tile.row_warps * keys * (read_k * depth + depth_v)
    queries = tile.column_warps * rows * depth
    exchanged = rows * keys if tile.exchanges else 0  # P, from one warp to its partner
    blocks_read = work.worked * (operands + exchanged)
    blocks_read += queries * (work.running if tile.q_in_registers else work.worked)
    tile_of_q = _wavefronts(tile.block_m, tile.head_dim)
    tiles_of_keys = _wavefronts(tile.block_n, tile.head_dim + tile.head_dim_v)
    staged = work.stored * _wavefronts(tile.block_m, tile.head_dim_v)  # the output
    return Shared(
        cp_async=work.steps * tiles_of_keys + work.running * tile_of_q,
        ldmatrix=int(blocks_read * _LDMATRIX),
        stores=staged + int(work.worked * exchanged * _LDMATRIX),
        loads=staged,
    )


def backward_mma(tile: BwdTile, work: Work) -> int:
    """S, dP, dV, dK and dQ, of which all pass over the keys of warps that rest."""
    depth = 3 * tile.head_dim + 2 * tile.head_dim_v
    return int(work.worked * tile.block_m * tile.block_n * depth / _MMA)


def backward_shared(tile: BwdTile, work: Work, listed: bool = False) -> Shared:
    exchanges = tile.warps > tile.key_warps
    blocks_read = work.worked * (_read_for_scores(tile) + _read_for_gradients(tile, listed))
    blocks_read += work.running * _kept_in_registers(tile)

    tiles_of_q = _wavefronts(tile.block_m, tile.head_dim + tile.head_dim_v)
    tiles_of_k = _wavefronts(tile.block_n, tile.head_dim + tile.head_dim_v)
    tile_of_p = _wavefronts(tile.block_m, tile.block_n)
    # Sums of scores, in float32, that a warp leaves for others: all of its own where scores are
    # shared, of which each of the twins adds up what is there, or half of a pair's.
    sums = tile_of_p * FLOAT_BYTES // ELEMENT_BYTES
    left = sums * (tile.sharers if tile.shares_scores else tile.pairs_scores)
    taken = left * tile.twins
    stats = 2 * tile.block_m * FLOAT_BYTES // WAVEFRONT_BYTES
    stored = work.stored * tiles_of_k
    # Of each 8 queries a warp loads lse and D, of which all of its lanes have a copy.
    copies = tile.key_warps * tile.twins * 2 * tile.block_m // 8
    return Shared(
        cp_async=work.running * tiles_of_k + work.steps * (tiles_of_q + stats),
        ldmatrix=int(blocks_read * _LDMATRIX),
        stores=int(work.worked * ((1 + exchanges) * tile_of_p + left)) + stored,
        loads=int(work.worked * (copies + taken)) + stored,
    )


def _sides(tile: BwdTile) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """Depth, and whether registers hold the rows of keys: of K with Q, and of V with dO."""
    return (
        (tile.head_dim // _BLOCK, tile.k_in_registers),
        (tile.head_dim_v // _BLOCK, tile.v_in_registers),
    )


def _kept_in_registers(tile: BwdTile) -> int:
    """Blocks of K and V that are read before the first step."""
    keys = tile.block_n // _BLOCK
    return tile.query_warps * keys * sum(depth for depth, kept in _sides(tile) if kept)


def _read_for_scores(tile: BwdTile) -> int:
    """S' = K Q' and dP' = V dO', blocks in a step.

    All key warps read the tiles of queries; the query warps K and V, for each chunk of their
    queries, unless they hold them. Of a pair one warp reads K, the other V; warps that share scores
    read a part of the columns each, for all queries.
    """
    queries, keys = tile.block_m // _BLOCK, tile.block_n // _BLOCK
    depths = sum(depth for depth, _ in _sides(tile))
    of_queries = tile.key_warps * queries * depths
    if tile.shares_scores:
        return of_queries + keys * depths
    if tile.pairs_scores:
        return of_queries + tile.query_warps * keys * depths // 2
    chunks = tile.block_m // (tile.query_warps * tile.chunk)
    read_anew = sum(depth for depth, kept in _sides(tile) if not kept)
    return of_queries + tile.query_warps * chunks * keys * read_anew


def _read_for_gradients(tile: BwdTile, listed: bool) -> int:
    """dV += P' dO, dK += dS' Q and dQ += dS K, blocks in a step.

    The queries again, each query warp its columns; P' and dS' of other query warps come through
    shared memory. Warps that share scores have all keys of dV and dK, and fetch all of P' and dS'.
    Of dQ a warp takes so many queries and its share of the columns, dense pairs and sharers half of
    them at a time.
    """
    queries, keys = tile.block_m // _BLOCK, tile.block_n // _BLOCK
    depths = sum(depth for depth, _ in _sides(tile))
    shares = tile.shares_scores
    of_queries = (1 if shares else tile.key_warps) * queries * depths
    fetched = 2 * (tile.warps if shares else tile.query_warps - 1) * keys * queries
    row_warps = tile.block_m // tile.grad_q_rows
    halves = 2 if shares or (tile.pairs_scores and not listed) else 1
    grad_q = halves * tile.warps // row_warps * queries * keys
    grad_q += row_warps * keys * tile.head_dim // _BLOCK
    return of_queries + fetched + grad_q


def _wavefronts(rows: int, cols: int) -> int:
    """Of a tile of elements."""
    return rows * cols * ELEMENT_BYTES // WAVEFRONT_BYTES

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
    """S = Q K' and O += P V."""
    return int(work.worked * 2 * tile.block_m * tile.block_n * tile.head_dim / _MMA)


def forward_shared(tile: FwdTile, work: Work) -> Shared:
    rows, keys, depth = (n // _BLOCK for n in (tile.block_m, tile.block_n, tile.head_dim))
    # Every row warp reads K and V; warps that share rows each read the queries, and halves of V.
    operands = 2 * tile.row_warps * keys * depth
    queries = tile.column_warps * rows * depth
    exchanged = rows * keys if tile.column_warps == 2 else 0  # P, from one warp to its partner
    tile_of_q = _wavefronts(tile.block_m, tile.head_dim)
    tile_of_k = _wavefronts(tile.block_n, tile.head_dim)
    blocks_read = work.worked * (operands + exchanged)
    blocks_read += queries * (work.running if tile.q_in_registers else work.worked)
    return Shared(
        cp_async=work.steps * 2 * tile_of_k + work.running * tile_of_q,
        ldmatrix=int(blocks_read * _LDMATRIX),
        # The output is staged.
        stores=work.stored * tile_of_q + int(work.worked * exchanged * _LDMATRIX),
        loads=work.stored * tile_of_q,
    )


def backward_mma(tile: BwdTile, work: Work) -> int:
    """S, dP, dV, dK and dQ, of which all pass over the keys of warps that rest."""
    return int(work.worked * 5 * tile.block_m * tile.block_n * tile.head_dim / _MMA)


def backward_shared(tile: BwdTile, work: Work, listed: bool = False) -> Shared:
    queries, keys, depth = (n // _BLOCK for n in (tile.block_m, tile.block_n, tile.head_dim))
    warps = tile.key_warps * tile.query_warps
    exchanges = tile.query_warps > 1
    # S = Q K' and dP = dO V': all key warps read the tiles of queries; the query warps K and V, for
    # each chunk of their queries, unless they hold them. Of a pair one warp reads K, the other V,
    # and each gives the other half of its sums.
    tiles_of_queries = 2 * tile.key_warps * queries * depth
    held = tile.query_warps * keys * depth
    chunks = tile.block_m // (tile.query_warps * tile.chunk)
    kept = tile.k_in_registers + tile.v_in_registers
    read_anew = 1 if tile.pairs_scores else 2 - kept
    # dV += P' dO and dK += dS' Q: the tiles again, each query warp its columns; P' and dS' of
    # other query warps come through shared memory.
    fetched = 2 * (tile.query_warps - 1) * keys * queries
    # dQ += dS K: a warp takes so many queries and its share of the columns, dense pairs half of
    # them at a time.
    row_warps = tile.block_m // tile.grad_q_rows
    halves = 2 if tile.pairs_scores and not listed else 1
    grad_q = halves * warps // row_warps * queries * keys + row_warps * keys * depth
    blocks_read = work.worked * (2 * tiles_of_queries + read_anew * chunks * held)
    blocks_read += work.worked * (fetched + grad_q)
    blocks_read += work.running * kept * held

    tile_of_q = _wavefronts(tile.block_m, tile.head_dim)
    tile_of_k = _wavefronts(tile.block_n, tile.head_dim)
    tile_of_p = _wavefronts(tile.block_m, tile.block_n)
    given = tile.pairs_scores * tile_of_p * FLOAT_BYTES // ELEMENT_BYTES
    stats = 2 * tile.block_m * FLOAT_BYTES // WAVEFRONT_BYTES
    stored = work.stored * 2 * tile_of_k
    # Of each 8 queries a warp loads lse and D, of which all of its lanes have a copy.
    copies = tile.key_warps * 2 * tile.block_m // 8
    return Shared(
        cp_async=work.running * 2 * tile_of_k + work.steps * (2 * tile_of_q + stats),
        ldmatrix=int(blocks_read * _LDMATRIX),
        stores=int(work.worked * ((1 + exchanges) * tile_of_p + given)) + stored,
        loads=int(work.worked * (copies + given)) + stored,
    )


def _wavefronts(rows: int, cols: int) -> int:
    """Of a tile of elements."""
    return rows * cols * ELEMENT_BYTES // WAVEFRONT_BYTES

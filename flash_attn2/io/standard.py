"""Standard attention: products and softmax are kernels of their own, matrices go through memory.

Forward, S = Q K', P = softmax(S), O = P V; backward, dV = P' dO, dP = dO V',
dS = P * (dP - rowsum(P * dP)), dQ = dS K, dK = dS' Q. A product is tiled as libraries tile it: a
CTA computes one tile of the result, and reads its rows and columns of the factors once.
A causal mask saves nothing: matrices are computed and stored whole. A row waits in shared memory
for its sum. `csrc/sm80/standard` has such kernels, for heads of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn2.io.balance import waves_over_ideal
from flash_attn2.io.counts import WAVEFRONT_BYTES, Kernel, Pass, Shared, Traffic, once
from flash_attn2.io.problem import ELEMENT_BYTES, Attention


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the result of a CTA, the depth of a step, and the places of the warps."""

    rows: int = 128
    cols: int = 128
    depth: int = 64
    row_warps: int = 2
    col_warps: int = 2
    ctas_per_sm: int = 2


TILE = Tile()
_MMA = 16 * 8 * 16
_BLOCK_WAVEFRONTS = 16 * 16 * ELEMENT_BYTES // WAVEFRONT_BYTES


def forward(problem: Attention) -> Pass:
    n, d, d_v = problem.seqlen, problem.head_dim, problem.width_v
    square = problem.square_bytes
    wavefronts = square // WAVEFRONT_BYTES
    return Pass(
        (
            _product("S = Q K'", problem, (n, n, d), "q", "k", "scores"),
            Kernel(
                "P = softmax(S)",
                ctas=problem.rows,
                reads={"scores": once(square)},
                writes={"probs": once(square)},
                shared=Shared(stores=wavefronts, loads=2 * wavefronts),
            ),
            _product("O = P V", problem, (n, d_v, n), "probs", "v", "out"),
        )
    )


def backward(problem: Attention) -> Pass:
    n, d, d_v = problem.seqlen, problem.head_dim, problem.width_v
    square = problem.square_bytes
    wavefronts = square // WAVEFRONT_BYTES
    return Pass(
        (
            _product("dV = P' dO", problem, (n, d_v, n), "probs", "grad_out", "grad_v"),
            _product("dP = dO V'", problem, (n, n, d_v), "grad_out", "v", "grad_probs"),
            Kernel(
                "dS = softmax'(P, dP)",
                ctas=problem.rows,
                reads={"probs": once(square), "grad_probs": once(square)},
                writes={"grad_scores": once(square)},
                shared=Shared(stores=2 * wavefronts, loads=2 * wavefronts),
            ),
            _product("dQ = dS K", problem, (n, d, n), "grad_scores", "k", "grad_q"),
            _product("dK = dS' Q", problem, (n, d, n), "grad_scores", "q", "grad_k"),
        )
    )


def _product(
    name: str, problem: Attention, shape: tuple[int, int, int], a: str, b: str, c: str
) -> Kernel:
    """C (rows, cols) = A B, by tiles; `shape` is (rows, cols, depth)."""
    rows, cols, depth = shape
    row_tiles, col_tiles = -(-rows // TILE.rows), -(-cols // TILE.cols)
    ctas = row_tiles * col_tiles * problem.pairs
    bytes_of_a, bytes_of_b, bytes_of_c = (
        problem.pairs * size * ELEMENT_BYTES for size in (rows * depth, depth * cols, rows * cols)
    )
    # A tile is not narrower than the head dim is up to a multiple of 16.
    tile_cols = min(TILE.cols, -(-cols // 16) * 16)
    blocks_deep = -(-depth // TILE.depth) * TILE.depth // 16
    row_blocks, col_blocks = TILE.rows // 16, tile_cols // 16
    operands = blocks_deep * (TILE.col_warps * row_blocks + TILE.row_warps * col_blocks)
    staged = row_blocks * col_blocks
    return Kernel(
        name,
        ctas=ctas,
        mma=ctas * TILE.rows * tile_cols * blocks_deep * 16 // _MMA,
        reads={
            a: Traffic(bytes_of_a * col_tiles, bytes_of_a),
            b: Traffic(bytes_of_b * row_tiles, bytes_of_b),
        },
        writes={c: once(bytes_of_c)},
        shared=Shared(
            cp_async=ctas * blocks_deep * (row_blocks + col_blocks) * _BLOCK_WAVEFRONTS,
            ldmatrix=ctas * operands * _BLOCK_WAVEFRONTS,
            stores=ctas * staged * _BLOCK_WAVEFRONTS,
            loads=bytes_of_c // WAVEFRONT_BYTES,
        ),
        balance=waves_over_ideal(ctas, problem.device.sm_count * TILE.ctas_per_sm),
    )

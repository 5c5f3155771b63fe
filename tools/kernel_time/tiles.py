"""What a kernel's name says of its tile, and what its machine code must then have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.nvcc.units import variant_of_kernel

_MMA_PRODUCTS = 16 * 8 * 16  # of one HMMA.16816
_COPIED = 8  # elements of two bytes that a thread copies at once

_LISTED = ("listed", "listeddropout")
_DROPOUT = ("dropout", "listeddropout")
_DRAWN = 8  # scores of a call of Philox (csrc/core/dropout.h)
# Products of a call at least: 14, of which those of the first rounds may be shared.
CALL_DRAWS = 10


@dataclass(frozen=True)
class Counts:
    """Instructions of one thread: MMAs, asynchronous copies, reductions in global memory, barriers,
    and stores of results, 16 bytes each. ``draws``: products of 64 bits, at least those of Philox.
    """

    mmas: int = 0
    copies: int = 0
    reductions: int = 0
    barriers: int = 0
    stores: int = 0
    draws: int = 0


@dataclass(frozen=True)
class Tile:
    """The tile of a CTA. A forward turn takes ``block_n`` keys, a backward one ``block_m`` queries.

    ``head_dim`` is the mean of its widths, of keys and of values. ``prologue``, ``turn`` and
    ``epilogue`` say what the parts of the machine code have; of the
    prologue, barriers are not known.
    """

    kind: str  # "fwd" or "bwd"
    head_dim: int
    block_m: int
    block_n: int
    warps: int
    prologue: Counts
    turn: Counts
    epilogue: Counts

    @property
    def threads(self) -> int:
        return self.warps * 32


class TileError(Exception):
    """A kernel's name does not say what its tile is, or its code does not do what the tile says."""


def forward_tile(fields: list[int], variant: str) -> Tile:
    """Of a ``FwdTile`` of csrc/sm80/tiles.h."""
    head_dim, head_dim_v, block_m, block_n, row_warps, column_warps, _, _, key_warps, whole = fields
    warps = row_warps * column_warps * key_warps
    per_pass = _COPIED * warps * 32
    probs = block_m * block_n
    if whole:  # each column warp has all of its rows'
        probs *= column_warps
    scores = probs * head_dim // (_MMA_PRODUCTS * warps)
    outputs = block_m * block_n * head_dim_v // (_MMA_PRODUCTS * warps)
    copied = block_n * (head_dim + head_dim_v)
    pairs = column_warps == 2 and not whole
    # kOverlaps of csrc/sm80/forward/config.h: a turn has the scores of the keys that come next, and
    # what is left of the first and the last turn stands outside.
    overlaps = variant == "plain" and (pairs or (head_dim == 128 and block_n == 32))
    return Tile(
        kind="fwd",
        head_dim=(head_dim + head_dim_v) // 2,
        block_m=block_m,
        block_n=block_n,
        warps=warps,
        prologue=Counts(
            mmas=overlaps * scores,
            copies=((block_m + block_n) * head_dim + overlaps * copied) // per_pass,
        ),
        turn=Counts(
            mmas=scores + outputs,
            copies=copied // per_pass,
            # Before each of the two products; and where a pair of warps exchanges P on its own.
            barriers=2 + (pairs and not overlaps),
            draws=(variant in _DROPOUT) * CALL_DRAWS * probs // (_DRAWN * warps * 32),
        ),
        epilogue=Counts(mmas=overlaps * outputs, stores=block_m * head_dim_v // per_pass),
    )


def backward_tile(fields: list[int], variant: str) -> Tile:
    """Of a ``BwdTile`` of csrc/sm80/backward/tiles.h."""
    head_dim, block_n, block_m, key_warps, query_warps, _, _, _, stages, _, *rest = fields
    head_dim_v, twins = rest
    warps = key_warps * query_warps * twins
    per_pass = _COPIED * warps * 32
    both = head_dim + head_dim_v
    queries = block_m * both // per_pass + 1  # Q, dO, and two numbers of each row
    shares = twins > 1
    exchanges = query_warps > 1 or shares
    pairs = head_dim == 256 and query_warps == 4  # pairs_scores of csrc/sm80/backward/tiles.h
    products = block_m * block_n * (3 * head_dim + 2 * head_dim_v)
    return Tile(
        kind="bwd",
        head_dim=both // 2,
        block_m=block_m,
        block_n=block_n,
        warps=warps,
        prologue=Counts(copies=block_n * both // per_pass + queries),
        turn=Counts(
            mmas=products // (_MMA_PRODUCTS * warps),
            copies=queries + (variant in _LISTED),  # one thread fetches the next entry of a list
            reductions=block_m * head_dim // (warps * 32),
            # When copies have landed; when parts of shared scores are there, or what pairs give
            # each other; when dS is; when nobody reads the one buffer any more.
            barriers=2 + shares + pairs + (stages == 1 and exchanges),
            # Two lanes share the calls for their columns.
            draws=(variant in _DROPOUT) * CALL_DRAWS * block_m // (query_warps * _DRAWN),
        ),
        epilogue=Counts(stores=block_n * both // per_pass),
    )


_TILES = {"FwdTile": (forward_tile, 10), "BwdTile": (backward_tile, 12)}
_TILE = re.compile(r"\d(FwdTile|BwdTile)E((?:L[ib]\d+E)+)")


def tile_of(mangled: str) -> Tile:
    """The tile of a forward or backward kernel, by its mangled name."""
    found, variant = _TILE.search(mangled), variant_of_kernel(mangled)
    if found is None or variant is None:
        raise TileError(f"no tile of a variant in {mangled}")
    make, size = _TILES[found[1]]
    fields = [int(value) for value in re.findall(r"L[ib](\d+)E", found[2])]
    if len(fields) != size:
        raise TileError(f"a {found[1]} has {size} fields, {mangled} has {len(fields)}")
    return make(fields, variant)

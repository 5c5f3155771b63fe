"""A picture of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import BLOCK
from flash_attn2.masks.lists import Lists, rows_of_entries
from flash_attn2.masks.words import num_blocks

if TYPE_CHECKING:
    from flash_attn2.masks.block_mask import BlockMask

_EMPTY, _PARTIAL, _FULL = 0, 1, 2
_COLORS = {_EMPTY: "#f1f3f5", _PARTIAL: "#73a9cf", _FULL: "#30638e"}
_NAMES = {_FULL: "full", _PARTIAL: "partial", _EMPTY: "empty"}
_CELLS = 1024  # at most to a side: of longer masks a cell is several blocks


def plot(mask: BlockMask, ax: Any, batch: int, head: int) -> Any:
    """`BlockMask.plot`."""
    try:
        from matplotlib import pyplot
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError(
            f"a picture of a mask needs matplotlib ({error}): pip install 'flash_attn2[bench]'"
        ) from error
    cells = _cells(mask, batch, head)
    if ax is None:
        _, ax = pyplot.subplots(figsize=(5.5, 5.2), layout="constrained")
    extent = (0, cells.shape[1] * _scale(mask) * BLOCK, cells.shape[0] * _scale(mask) * BLOCK, 0)
    ax.imshow(
        cells.tolist(),
        cmap=ListedColormap([_COLORS[kind] for kind in sorted(_COLORS)]),
        vmin=_EMPTY,
        vmax=_FULL,
        extent=extent,
        interpolation="nearest",
    )
    ax.set_xlim(0, max(mask.seqlen_k, 1))
    ax.set_ylim(max(mask.seqlen_q, 1), 0)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    which = f", batch {batch}, head {head}" if mask.batch * mask.heads > 1 else ""
    ax.set_title(f"{mask.density:.2%} of pairs are visible{which}", fontsize=10)
    handles = [Patch(facecolor=_COLORS[x], edgecolor="#9aa5b1", label=_NAMES[x]) for x in _NAMES]
    ax.legend(  # below the label of the axis, however high the axes are
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=3.6,
        ncols=3,
        frameon=False,
    )
    return ax


def _scale(mask: BlockMask) -> int:
    """Blocks to a side of a cell."""
    longest = max(num_blocks(mask.seqlen_q), num_blocks(mask.seqlen_k), 1)
    return -(-longest // _CELLS)


def _cells(mask: BlockMask, batch: int, head: int) -> Tensor:
    """int (rows, cols): the kind of each cell, which is full if all of its blocks are."""
    rows, cols = num_blocks(mask.seqlen_q), num_blocks(mask.seqlen_k)
    scale = _scale(mask)
    offsets = mask.row_offsets[batch, head].cpu()
    begin, end = int(offsets[0]), int(offsets[-1])
    listed = mask.cols[begin:end].cpu().long()
    tiles = mask.tiles[begin:end].cpu()
    row = rows_of_entries(Lists((offsets - begin)[None, None], listed, tiles, tiles))
    shape = (max(-(-rows // scale), 1), max(-(-cols // scale), 1))
    cell = row // scale * shape[1] + listed // scale
    seen = torch.bincount(cell, minlength=shape[0] * shape[1]).view(shape)
    full = torch.bincount(cell[tiles == 0], minlength=shape[0] * shape[1]).view(shape)
    blocks = _blocks_of_cells(rows, shape[0], scale)[:, None] * _blocks_of_cells(
        cols, shape[1], scale
    )
    partial = torch.where(seen > 0, _PARTIAL, _EMPTY)
    return torch.where((full == blocks) & (seen > 0), _FULL, partial)


def _blocks_of_cells(count: int, cells: int, scale: int) -> Tensor:
    return (count - torch.arange(cells, device="cpu") * scale).clamp(max=scale)

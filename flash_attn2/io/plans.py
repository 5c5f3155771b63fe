"""The plans of the sm80 kernels for a problem: native code that needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flash_attn2._impl import backends
from flash_attn2.io.problem import Attention, Device
from flash_attn2.masks import BlockMask

# (begin, end) of the tiles that a block goes through
Tiles = tuple[int, int]


@dataclass(frozen=True)
class FwdTile:
    """As in `csrc/sm80/tiles.h`."""

    head_dim: int
    head_dim_v: int
    block_m: int
    block_n: int
    row_warps: int
    column_warps: int
    q_in_registers: bool
    ctas_per_sm: int
    whole_scores: bool

    @property
    def exchanges(self) -> bool:
        """Whether pairs of warps each have half of the probabilities of their rows."""
        return self.column_warps > 1 and not self.whole_scores


@dataclass(frozen=True)
class BwdTile:
    """As in `csrc/sm80/backward/tiles.h`."""

    head_dim: int
    head_dim_v: int
    block_m: int
    block_n: int
    key_warps: int
    query_warps: int
    chunk: int
    k_in_registers: bool
    v_in_registers: bool
    ctas_per_sm: int
    twins: int

    @property
    def warps(self) -> int:
        return self.key_warps * self.query_warps * self.twins

    @property
    def sharers(self) -> int:
        """Warps of the same keys."""
        return self.query_warps * self.twins

    @property
    def shares_scores(self) -> bool:
        """Whether these share the products of their scores."""
        return self.twins > 1

    @property
    def pairs_scores(self) -> bool:
        """Whether two warps of 16 queries share the products of their scores."""
        return self.head_dim == 256 and self.query_warps == 4

    @property
    def grad_q_rows(self) -> int:
        """Queries of a warp in dQ, as `GradQLayout` of `csrc/sm80/backward/grad_q.h` has it."""
        sums = self.block_m * self.head_dim // self.warps
        return 16 if self.block_m < 32 or sums % 512 else 32


@dataclass(frozen=True)
class ListedPlan:
    """As in `csrc/sm80/plan.h`; what a block mask adds to a launch."""

    units: int  # masks
    lists: int  # of each
    capacity: int  # places for pieces of lists; 0: no list can be cut
    sum_grid: int  # CTAs of the kernel that adds up what pieces leave


@dataclass(frozen=True)
class FwdPlan:
    """Blocks are of queries and go through tiles of keys; those of a block mask are not said."""

    tile: FwdTile
    section: int
    grid: int
    workspace_bytes: int
    listed: ListedPlan
    blocks: list[Tiles]


@dataclass(frozen=True)
class BwdPlan:
    """Blocks are of keys and go through tiles of queries; those of a block mask are not said."""

    tile: BwdTile
    section: int
    grid: int
    rows_grid: int
    mask_rows_grid: int
    mask_columns_grid: int
    workspace_bytes: int
    listed: ListedPlan
    blocks: list[Tiles]


def forward_plan(problem: Attention, mask: BlockMask | None = None) -> FwdPlan:
    plan = native().sm80_forward_plan(_forward(problem, mask), native_device(problem.device))
    return FwdPlan(
        **plan | {"tile": FwdTile(**plan["tile"]), "listed": ListedPlan(**plan["listed"])}
    )


def backward_plan(problem: Attention, mask: BlockMask | None = None) -> BwdPlan:
    forward = _forward(problem, mask)
    gradient = {"forward": forward, "deterministic": False}
    for name, of in (("grad_out", "out"), ("grad_q", "q"), ("grad_k", "k"), ("grad_v", "v")):
        gradient[name] = forward[of]
    plan = native().sm80_backward_plan(gradient, native_device(problem.device))
    return BwdPlan(
        **plan | {"tile": BwdTile(**plan["tile"]), "listed": ListedPlan(**plan["listed"])}
    )


def native() -> Any:
    """The module that has plans."""
    return backends.load("cpu").module


def native_device(device: Device) -> dict[str, int]:
    """As plans are asked about it."""
    fields = ("arch", "sm_count", "smem_per_block", "l2_bytes")
    return {name: getattr(device, name) for name in fields}


def tensor(seqlen: int, heads: int, width: int, address: int = 0) -> tuple[int, int, int, int]:
    """Address and strides of a tensor that nothing is read from."""
    row = heads * width
    return address, seqlen * row, row, width


def _forward(problem: Attention, mask: BlockMask | None) -> dict[str, Any]:
    """Fields as in `csrc/bindings/params.cpp`."""
    widths = (
        ("q", problem.head_dim),
        ("k", problem.head_dim),
        ("v", problem.width_v),
        ("out", problem.width_v),
    )
    fields = {
        "dtype": "float16",
        "batch": problem.batch,
        "num_heads": problem.heads,
        "num_heads_kv": problem.heads,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.width_v,
        **{name: tensor(problem.seqlen, problem.heads, width) for name, width in widths},
        "seqs_q": {"max_seqlen": problem.seqlen},
        "seqs_k": {"max_seqlen": problem.seqlen},
        "softmax_scale": problem.head_dim**-0.5,
        "window": {"left": -1, "right": 0 if problem.causal else -1},
    }
    return fields if mask is None else fields | {"block_mask": _block_mask(mask)}


def _block_mask(mask: BlockMask) -> dict[str, int]:
    """One for all sequences. A plan asks for its sizes alone."""
    tensors = ("row_offsets", "cols", "tiles", "bits")
    return {name: getattr(mask, name).data_ptr() for name in tensors} | {
        "batch_stride": 0,
        "heads": mask.heads,
        "num_entries": mask.cols.numel(),
        "num_tiles": mask.bits.shape[0],
    }

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
    block_m: int
    block_n: int
    row_warps: int
    column_warps: int
    q_in_registers: bool
    ctas_per_sm: int


@dataclass(frozen=True)
class BwdTile:
    """As in `csrc/sm80/backward/tiles.h`."""

    head_dim: int
    block_m: int
    block_n: int
    key_warps: int
    query_warps: int
    chunk: int
    k_in_registers: bool
    v_in_registers: bool
    ctas_per_sm: int

    @property
    def pairs_scores(self) -> bool:
        """Whether two warps of 16 queries share the products of their scores."""
        return self.head_dim == 256 and self.query_warps == 4

    @property
    def grad_q_rows(self) -> int:
        """Queries of a warp in dQ, as `GradQLayout` of `csrc/sm80/backward/grad_q.h` has it."""
        sums = self.block_m * self.head_dim // (self.key_warps * self.query_warps)
        return 32 if sums % 512 == 0 else 16


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
    plan = _native().sm80_forward_plan(_forward(problem, mask), _device(problem.device))
    return FwdPlan(
        **plan | {"tile": FwdTile(**plan["tile"]), "listed": ListedPlan(**plan["listed"])}
    )


def backward_plan(problem: Attention, mask: BlockMask | None = None) -> BwdPlan:
    gradient = {"forward": _forward(problem, mask), "deterministic": False}
    for name in ("grad_out", "grad_q", "grad_k", "grad_v"):
        gradient[name] = _tensor(problem)
    plan = _native().sm80_backward_plan(gradient, _device(problem.device))
    return BwdPlan(
        **plan | {"tile": BwdTile(**plan["tile"]), "listed": ListedPlan(**plan["listed"])}
    )


def _native() -> Any:
    return backends.load("cpu").module


def _device(device: Device) -> dict[str, int]:
    fields = ("arch", "sm_count", "smem_per_block", "l2_bytes")
    return {name: getattr(device, name) for name in fields}


def _tensor(problem: Attention) -> tuple[int, int, int, int]:
    """Address and strides of a tensor that nothing is read from."""
    row = problem.heads * problem.head_dim
    return 0, problem.seqlen * row, row, problem.head_dim


def _forward(problem: Attention, mask: BlockMask | None) -> dict[str, Any]:
    """Fields as in `csrc/bindings/params.cpp`."""
    fields = {
        "dtype": "float16",
        "batch": problem.batch,
        "num_heads": problem.heads,
        "num_heads_kv": problem.heads,
        "head_dim": problem.head_dim,
        **{name: _tensor(problem) for name in ("q", "k", "v", "out")},
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

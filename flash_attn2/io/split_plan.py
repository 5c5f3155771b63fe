"""The plan of the sm80 split kernel for decoding: native code that needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flash_attn2.io.decoding import Decoding
from flash_attn2.io.plans import FwdTile, native, native_device, tensor

_ADDRESSES = {"k": 1 << 20, "v": 2 << 20, "scales": 3 << 20}  # nothing is read from there


@dataclass(frozen=True)
class SplitPlan:
    tile: FwdTile
    row_blocks: int  # of a sequence and KV head: its queries' heads, in tiles
    splits: int  # of such a block
    ctas: int  # that share them
    stored: int  # results for the combine kernel; 1: there is none
    grid: int
    combine_grid: int
    workspace_bytes: int


def split_plan(problem: Decoding) -> SplitPlan:
    plan = native().sm80_split_plan(_params(problem), native_device(problem.device))
    return SplitPlan(**plan | {"tile": FwdTile(**plan["tile"])})


def _params(problem: Decoding) -> dict[str, Any]:
    """Fields as in `csrc/bindings/params.cpp`."""
    keys, heads = problem.seqlen_k, problem.heads_kv
    row_v = problem.head_dim if problem.shared else problem.width_v
    fields = {
        "dtype": "float16",
        "batch": problem.batch,
        "num_heads": problem.heads,
        "num_heads_kv": heads,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.width_v,
        "q": tensor(1, problem.heads, problem.head_dim),
        "k": tensor(keys, heads, problem.head_dim, _ADDRESSES["k"]),
        "v": tensor(keys, heads, row_v, _ADDRESSES["k" if problem.shared else "v"]),
        "out": tensor(1, problem.heads, problem.width_v),
        "seqs_q": {"max_seqlen": 1},
        "seqs_k": {"max_seqlen": keys},
        "softmax_scale": problem.head_dim**-0.5,
    }
    if problem.scales is None:
        return fields
    scales = {"factors": tensor(keys, heads, 1, _ADDRESSES["scales"]), "unit": problem.scales}
    return fields | {"quantised": {"type": "float8_e4m3fn", "k": scales, "v": scales}}

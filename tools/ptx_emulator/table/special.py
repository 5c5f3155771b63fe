"""Special registers, which are read only: C++ type and expression of each."""

from __future__ import annotations

SPECIAL_REGISTERS: dict[str, tuple[str, str]] = {
    **{f"%tid.{c}": ("u32", f"thread_index({i})") for i, c in enumerate("xyz")},
    **{f"%ntid.{c}": ("u32", f"block_size({i})") for i, c in enumerate("xyz")},
    **{f"%ctaid.{c}": ("u32", f"block_index({i})") for i, c in enumerate("xyz")},
    **{f"%nctaid.{c}": ("u32", f"grid_size({i})") for i, c in enumerate("xyz")},
    # A cluster is one CTA.
    **{f"%cluster_ctaid.{c}": ("u32", "u32(0)") for c in "xyz"},
    **{f"%cluster_nctaid.{c}": ("u32", "u32(1)") for c in "xyz"},
    "%cluster_ctarank": ("u32", "u32(0)"),
    "%cluster_nctarank": ("u32", "u32(1)"),
    "%laneid": ("u32", "lane_id()"),
    "%warpid": ("u32", "warp_id()"),
    "%nwarpid": ("u32", "u32(32)"),
    "WARP_SZ": ("u32", "u32(32)"),
    "%lanemask_eq": ("u32", "(1u << lane_id())"),
    "%lanemask_lt": ("u32", "((1u << lane_id()) - 1u)"),
    "%lanemask_le": ("u32", "((2u << lane_id()) - 1u)"),
    "%lanemask_gt": ("u32", "~((2u << lane_id()) - 1u)"),
    "%lanemask_ge": ("u32", "~((1u << lane_id()) - 1u)"),
    "%smid": ("u32", "u32(0)"),
    "%nsmid": ("u32", "multiprocessors()"),
    "%gridid": ("u64", "u64(0)"),
    "%clock": ("u32", "u32(clock_ticks())"),
    "%clock64": ("u64", "clock_ticks()"),
    "%globaltimer": ("u64", "clock_ticks()"),
    "%dynamic_smem_size": ("u32", "dynamic_shared_bytes()"),
    "%total_smem_size": ("u32", "total_shared_bytes()"),
}

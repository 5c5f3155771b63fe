#include "bindings/sm80_plans.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "bindings/fields.h"
#include "bindings/params.h"
#include "core/block_range.h"
#include "host/error.h"
#include "sm80/plan.h"
#include "sm80/row_block.h"

namespace py = pybind11;

namespace fa2::bindings {
namespace {

using sm80::BwdPlan;
using sm80::BwdTile;
using sm80::FwdPlan;
using sm80::FwdTile;

DeviceInfo read_device(py::dict const& device) {
  Fields fields(device);
  DeviceInfo const info{.arch = fields.get<"arch", int32_t>(),
                        .sm_count = fields.get<"sm_count", int32_t>(),
                        .smem_per_block = fields.get<"smem_per_block", int32_t>(),
                        .l2_bytes = fields.get<"l2_bytes", int64_t>()};
  fields.finish();
  return info;
}

py::dict to_dict(FwdTile const& tile) {
  py::dict d;
  d["head_dim"] = tile.head_dim;
  d["head_dim_v"] = tile.head_dim_v;
  d["block_m"] = tile.block_m;
  d["block_n"] = tile.block_n;
  d["row_warps"] = tile.row_warps;
  d["column_warps"] = tile.column_warps;
  d["q_in_registers"] = tile.q_in_registers;
  d["ctas_per_sm"] = tile.ctas_per_sm;
  d["whole_scores"] = tile.whole_scores;
  return d;
}

py::dict to_dict(BwdTile const& tile) {
  py::dict d;
  d["head_dim"] = tile.head_dim;
  d["head_dim_v"] = tile.head_dim_v;
  d["block_m"] = tile.block_m;
  d["block_n"] = tile.block_n;
  d["key_warps"] = tile.key_warps;
  d["query_warps"] = tile.query_warps;
  d["chunk"] = tile.chunk;
  d["k_in_registers"] = tile.k_in_registers;
  d["v_in_registers"] = tile.v_in_registers;
  d["twins"] = tile.twins;
  d["ctas_per_sm"] = tile.ctas_per_sm;
  return d;
}

// What a block mask adds to a plan, but for where its memory lies.
py::dict to_dict(sm80::ListedPlan const& listed) {
  py::dict d;
  d["units"] = listed.units;
  d["lists"] = listed.lists;
  d["capacity"] = listed.capacity;
  d["sum_grid"] = listed.sum_grid;
  return d;
}

// Tiles [first, second) that a block goes through.
using Tiles = std::pair<int32_t, int32_t>;

// Of each block of queries, its tiles of keys.
std::vector<Tiles> key_tiles(FwdParams const& p, int32_t blocks, FwdTile const& tile) {
  int32_t const rows = p.seqs_q.max_seqlen, keys = p.seqs_k.max_seqlen;
  std::vector<Tiles> result;
  for (int32_t m = 0; m < blocks; ++m) {
    int32_t const begin = m * tile.block_m, end = std::min(begin + tile.block_m, rows);
    BlockRange const tiles = block_range(begin, end, rows, keys, p.window, tile.block_n);
    result.emplace_back(tiles.begin, tiles.end);
  }
  return result;
}

// Of each block of keys, its tiles of queries.
std::vector<Tiles> query_tiles(FwdParams const& p, BwdPlan const& plan) {
  int32_t const rows = p.seqs_q.max_seqlen, keys = p.seqs_k.max_seqlen;
  std::vector<Tiles> result;
  for (int32_t n = 0; n < plan.num_n_blocks; ++n) {
    int32_t const begin = n * plan.tile.block_n, end = std::min(begin + plan.tile.block_n, keys);
    BlockRange const tiles = query_block_range(begin, end, rows, keys, p.window, plan.tile.block_m);
    result.emplace_back(tiles.begin, tiles.end);
  }
  return result;
}

py::dict forward_plan(py::dict const& problem, py::dict const& device) {
  FwdParams const p = read_forward_call(problem).params;
  FwdPlan const plan = sm80::plan_forward(p, read_device(device));
  FA2_CHECK(plan.num_launches == 1 && !plan.all[0].is_split(),
            "not a problem for the forward kernel alone: {}", to_string(plan));
  FwdPlan::Launch const& launch = plan.all[0];
  py::dict d;
  d["tile"] = to_dict(launch.tile);
  d["section"] = launch.section;
  d["grid"] = launch.grid;
  d["workspace_bytes"] = plan.workspace_bytes;
  d["listed"] = to_dict(launch.listed);
  d["blocks"] = key_tiles(p, launch.num_m_blocks, launch.tile);
  return d;
}

// Of a problem whose sequences one split kernel takes, and whose lengths are all the same.
py::dict split_plan(py::dict const& problem, py::dict const& device) {
  FwdParams const p = read_forward_call(problem).params;
  FwdPlan const plan = sm80::plan_forward(p, read_device(device));
  FA2_CHECK(plan.num_launches == 1 && plan.all[0].is_split(),
            "not a problem for one split kernel alone: {}", to_string(plan));
  FwdPlan::Launch const& launch = plan.all[0];
  sm80::SplitSchedule const schedule = plan.schedule(launch);
  SeqInfo const q = seq_info(p.seqs_q, 0), k = seq_info(p.seqs_k, 0);
  int32_t const blocks = sm80::row_blocks(schedule, q, k);
  sm80::Sharing const sharing = sm80::row_block(schedule, q, k, blocks, 0).sharing;
  py::dict d;
  d["tile"] = to_dict(launch.tile);
  d["row_blocks"] = blocks;
  d["splits"] = sharing.splits;
  d["ctas"] = sharing.ctas;
  d["stored"] = sharing.stored();
  d["grid"] = launch.grid;
  d["combine_grid"] = launch.combine_grid;
  d["workspace_bytes"] = plan.workspace_bytes;
  return d;
}

py::dict backward_plan(py::dict const& problem, py::dict const& device) {
  BwdParams const params = read_backward_call(problem);
  BwdPlan const plan = sm80::plan_backward(params, read_device(device));
  py::dict d;
  d["tile"] = to_dict(plan.tile);
  d["section"] = plan.section;
  d["grid"] = plan.grid;
  d["rows_grid"] = plan.rows_grid;
  d["mask_rows_grid"] = plan.mask_rows_grid;
  d["mask_columns_grid"] = plan.mask_columns_grid;
  d["workspace_bytes"] = plan.workspace_bytes;
  d["listed"] = to_dict(plan.listed);
  d["blocks"] = query_tiles(params.forward, plan);
  return d;
}

}  // namespace

void define_sm80_plans(py::module_& m) {
  using pybind11::arg;
  m.def("sm80_forward_plan", &forward_plan, arg("problem"), arg("device"),
        "The plan of the sm80 family for a dense problem that its forward kernel runs alone, as "
        "data: tile, section, grid, workspace_bytes, and of each block of queries the tiles of "
        "keys that it goes through without a block mask, as (begin, end). Under one, listed has "
        "how many lists may be cut into how many pieces. `device` has arch, sm_count, "
        "smem_per_block and l2_bytes.");
  m.def("sm80_split_plan", &split_plan, arg("problem"), arg("device"),
        "Likewise of a problem that one split kernel runs alone, as decoding over a dense cache: "
        "tile, row_blocks of a sequence and KV head, splits of the first of them, how many CTAs "
        "share these, how many results are stored for the combine kernel (1: there is none), the "
        "grids of both kernels and workspace_bytes.");
  m.def("sm80_backward_plan", &backward_plan, arg("problem"), arg("device"),
        "Likewise of the gradient of a dense problem; rows_grid is that of the kernels before and "
        "after the main one, mask_rows_grid and mask_columns_grid those of the kernels that derive "
        "lists of a block mask by keys; blocks are those of keys and go through tiles of queries.");
}

}  // namespace fa2::bindings

// Unit tests of how the sm80 family divides gradients of biases: sm80/bias_backward/pass.h and
// sm80/plan_bias_backward.

#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "host/error.h"
#include "sm80/bias_backward/args.h"
#include "sm80/plan.h"

namespace {

using namespace fa2;
using namespace fa2::sm80;

constexpr DeviceInfo kA100{
    .arch = 80, .sm_count = 108, .smem_per_block = 163 * 1024, .l2_bytes = 40 << 20};
constexpr int32_t kBatch = 3, kHeads = 2;

struct Case {
  int32_t seqlen_q;
  int32_t seqlen_k;
  std::vector<int32_t> apart;  // dimensions of (batch, head, query, key)
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (int32_t q : {1, 64, 190}) {
    for (int32_t k : {1, 65, 300}) {
      for (int bits = 0; bits < 16; ++bits) {
        Case c{q, k, {}};
        for (int dim = 0; dim < 4; ++dim) c.apart.push_back(bits >> dim & 1);
        all.push_back(c);
      }
    }
  }
  return all;
}

// A contiguous gradient, at addresses that nobody reads.
Bias sums_of(Case const& c) {
  int64_t const sizes[] = {kBatch, kHeads, c.seqlen_q, c.seqlen_k};
  int64_t strides[4], stride = 1;
  for (int dim = 3; dim >= 0; --dim) {
    strides[dim] = c.apart[dim] ? stride : 0;
    if (c.apart[dim]) stride *= sizes[dim];
  }
  return {.data = reinterpret_cast<void*>(uintptr_t(4096)),
          .batch_stride = strides[0],
          .head_stride = strides[1],
          .row_stride = strides[2],
          .col_stride = strides[3]};
}

Bias diagonals_of(Case const& c) {
  Bias sums{.data = reinterpret_cast<void*>(uintptr_t(4096 + 4 * (c.seqlen_q - 1))),
            .row_stride = -1,
            .col_stride = 1};
  if (c.apart[1]) sums.head_stride = c.seqlen_q + c.seqlen_k - 1;
  return sums;
}

BiasPass pass_of(Case const& c, bool by_diagonals) {
  return {.sums = by_diagonals ? diagonals_of(c) : sums_of(c),
          .by_diagonals = by_diagonals,
          .batch = kBatch,
          .num_heads = kHeads,
          .seqlen_q = c.seqlen_q,
          .seqlen_k = c.seqlen_k};
}

// Every tile of scores is in the walk of one unit, and what it adds to is the unit's.
void check_walks(BiasPass const& pass) {
  std::set<std::tuple<int32_t, int32_t, int32_t, int32_t>> seen;
  for (int64_t index = 0; index < pass.units(); ++index) {
    BiasUnit const unit = pass.unit(index);
    EXPECT_EQ(pass.index_of(unit), index);
    TileWalk const walk = pass.walk(unit);
    for (int64_t step = 0; step < walk.steps(); ++step) {
      ScoreTile const tile = walk.at(step);
      EXPECT(seen.insert({tile.batch, tile.head, tile.row, tile.col}).second);
      EXPECT(tile.batch >= 0 && tile.batch < kBatch && tile.head >= 0 && tile.head < kHeads);
      EXPECT(tile.row >= 0 && tile.row < pass.row_blocks());
      EXPECT(tile.col >= 0 && tile.col < pass.col_blocks());
      EXPECT(pass.sums.batch_stride == 0 || tile.batch == unit.batch);
      EXPECT(pass.sums.head_stride == 0 || tile.head == unit.head);
      EXPECT(!pass.has_rows() || tile.row == unit.row);
      EXPECT(!pass.has_cols() || tile.col == unit.col);
      EXPECT(!pass.by_diagonals || tile.col - tile.row == unit.col);
    }
  }
  EXPECT_EQ(int64_t(seen.size()), int64_t(kBatch) * kHeads * pass.row_blocks() * pass.col_blocks());
}

TEST(walks_cover_all_tiles_once) {
  for (Case const& c : cases()) {
    check_walks(pass_of(c, false));
    if (!c.apart[0] && !c.apart[2] && !c.apart[3]) check_walks(pass_of(c, true));
  }
}

TEST(every_entry_belongs_to_one_unit) {
  for (Case const& c : cases()) {
    BiasPass const pass = pass_of(c, false);
    int64_t entries = 1;
    int64_t const sizes[] = {kBatch, kHeads, c.seqlen_q, c.seqlen_k};
    for (int dim = 0; dim < 4; ++dim) entries *= c.apart[dim] ? sizes[dim] : 1;
    std::set<float*> places;
    for (int64_t index = 0; index < pass.units(); ++index) {
      for (int32_t entry = 0; entry < pass.entries(); ++entry) {
        float* const place = pass.place(pass.unit(index), entry);
        EXPECT(place == nullptr || places.insert(place).second);
      }
    }
    EXPECT_EQ(int64_t(places.size()), entries);
    auto const first = static_cast<float*>(pass.sums.data);
    EXPECT(*places.begin() == first && *places.rbegin() == first + entries - 1);
  }
}

BiasBwdParams problem(int32_t batch, int32_t seqlen) {
  BiasBwdParams params;
  FwdParams& p = params.forward;
  p.batch = batch;
  p.num_heads = kHeads;
  p.num_heads_kv = kHeads;
  p.head_dim = p.head_dim_v = 64;
  p.seqs_q.max_seqlen = p.seqs_k.max_seqlen = seqlen;
  return params;
}

TEST(walks_of_few_units_are_split) {
  auto const splits = [](int32_t batch, int32_t seqlen, bool of_rows) {
    BiasBwdParams params = problem(batch, seqlen);
    params.grad_bias = {.data = &params,
                        .head_stride = seqlen * (of_rows ? seqlen : 1),
                        .row_stride = of_rows ? seqlen : 0,
                        .col_stride = 1};
    return plan_bias_backward(params, kA100).launches[0].pass.splits;
  };
  EXPECT_EQ(splits(1, 2048, true), 1);
  EXPECT_EQ(splits(4096, 49, true), 162);  // windows of Swin: 324 CTAs for 2 tiles
  EXPECT_EQ(splits(8, 49, true), 2);       // of no fewer than 4 steps
  EXPECT_EQ(splits(4, 2048, false), 6);
}

TEST(memory_is_linear) {
  BiasBwdParams params = problem(1, 65536);
  params.grad_relative_bias = {
      .data = &params, .head_stride = 131071, .row_stride = -1, .col_stride = 1};
  BiasBwdPlan const plan = plan_bias_backward(params, kA100);
  EXPECT_EQ(plan.launches[1].grid, kHeads * 2047);
  EXPECT_EQ(plan.launches[1].sum_grid, kHeads * 2048);
  EXPECT_EQ(plan.workspace_bytes, kHeads * (65536 * 2 * 4 + 2047 * 128 * 4));
}

TEST(nothing_is_launched_for_nothing) {
  BiasBwdPlan const plan = plan_bias_backward(problem(1, 100), kA100);
  EXPECT_EQ(plan.launches[0].grid + plan.launches[1].grid + plan.rows_grid, 0);
  EXPECT_EQ(plan.workspace_bytes, 0);
  BiasBwdParams empty = problem(0, 100);
  empty.grad_bias = {.data = &empty, .col_stride = 1};
  EXPECT_EQ(plan_bias_backward(empty, kA100).launches[0].grid, 0);
}

TEST(what_nobody_could_mean_is_refused) {
  BiasBwdParams params = problem(1, 100);
  params.grad_bias = {.data = &params, .dtype = DType::kFloat16, .col_stride = 1};
  std::string what;
  try {
    plan_bias_backward(params, kA100);
  } catch (Error const& error) {
    what = error.what();
  }
  EXPECT(what.find("the gradient of bias is summed in float32, got float16") != std::string::npos)
      << what;
}

}  // namespace

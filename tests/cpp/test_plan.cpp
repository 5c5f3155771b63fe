// Unit tests of csrc/host/plan: problem and device -> kernel, tile and grid.

#include <array>
#include <string>

#include "check.h"
#include "core/seq_info.h"
#include "host/error.h"
#include "host/plan.h"
#include "sm80/bwd_args.h"

namespace {

using namespace fa2;

constexpr DeviceInfo kA100{
    .arch = 80, .sm_count = 108, .smem_per_block = 163 * 1024, .l2_bytes = 40 << 20};
constexpr DeviceInfo kRtx3090{
    .arch = 86, .sm_count = 82, .smem_per_block = 99 * 1024, .l2_bytes = 6 << 20};

FwdParams problem(int head_dim, int seqlen_q = 1000, int seqlen_k = 1000) {
  FwdParams p;
  p.batch = 3;
  p.num_heads = 8;
  p.num_heads_kv = 2;
  p.head_dim = head_dim;
  p.seqs_q.max_seqlen = seqlen_q;
  p.seqs_k.max_seqlen = seqlen_k;
  return p;
}

std::string error_of(FwdParams const& p, DeviceInfo const& device = kA100) {
  try {
    plan_forward(p, device);
  } catch (Error const& error) {
    return error.what();
  }
  return "";
}

TEST(head_dims_are_rounded_up_to_a_bucket) {
  for (int bucket : {32, 64, 96, 128, 192, 256}) {
    EXPECT_EQ(plan_forward(problem(bucket), kA100).key.bucket, bucket);
    EXPECT_EQ(plan_forward(problem(bucket - 8), kA100).key.bucket, bucket);
  }
}

TEST(variant_follows_from_what_the_problem_asks) {
  float const slopes[8] = {};
  FwdParams p = problem(64);
  EXPECT(plan_forward(p, kA100).key.variant == Variant::kPlain);
  p.score_mod.softcap = 30.f;
  EXPECT(plan_forward(p, kA100).key.variant == Variant::kModified);
  p.score_mod = {.alibi_slopes = slopes};
  EXPECT(plan_forward(p, kA100).key.variant == Variant::kModified);
  p.dropout.drop_prob = 0.1f;
  EXPECT(plan_forward(p, kA100).key.variant == Variant::kDropout);
}

TEST(wide_heads_have_a_tile_for_little_shared_memory) {
  for (int head_dim : {32, 128, 192, 256}) {
    EXPECT(plan_forward(problem(head_dim), kA100).key.tile == TileKind::kRegular);
    EXPECT_EQ(plan_forward(problem(head_dim), kRtx3090).key.tile == TileKind::kSmall,
              head_dim > 128);
  }
}

TEST(grid_covers_every_query_block_of_every_head) {
  for (int seqlen : {127, 128, 129, 4096}) {
    FwdParams p = problem(128, seqlen, 100);
    p.num_heads_kv = p.num_heads;
    FwdPlan const plan = plan_forward(p, kA100);
    EXPECT_EQ(plan.num_m_blocks, (seqlen + plan.tile.block_m - 1) / plan.tile.block_m);
    EXPECT_EQ(plan.grid, plan.num_m_blocks * 3 * 8);
  }
}

// The heads of a group read the same keys and values, so a section holds whole groups.
TEST(section_is_what_fits_half_of_the_l2_cache) {
  int64_t const group_bytes = 16384 * 128 * 2 * 2;
  FwdPlan const plan = plan_forward(problem(128, 1000, 16384), kA100);
  EXPECT_EQ(plan.section, (kA100.l2_bytes / 2) / group_bytes * 4);
  EXPECT_EQ(plan_forward(problem(128, 1000, 1 << 20), kA100).section, 4);
  EXPECT_EQ(plan_forward(problem(128, 1000, 16), kA100).section, 3 * 8);
}

TEST(what_no_kernel_can_run_is_refused) {
  EXPECT(error_of(problem(264)).find("264") != std::string::npos);
  EXPECT(error_of(problem(36)).find("multiples of 8") != std::string::npos);
  FwdParams p = problem(64);
  p.dtype = DType::kFloat32;
  EXPECT(error_of(p).find("float16") != std::string::npos);
  p = problem(64, kMaxSeqlen);
  p.batch = 1 << 20;
  EXPECT(error_of(p).find("query tiles") != std::string::npos);
  DeviceInfo const volta{.arch = 70, .sm_count = 80, .smem_per_block = 96 * 1024, .l2_bytes = 0};
  EXPECT(error_of(problem(64), volta).find("8.0") != std::string::npos);
}

TEST(plan_is_printable) {
  EXPECT_EQ(to_string(plan_forward(problem(80), kA100)),
            "float16 head_dim<=96 plain: tile 128x64, warps 4x1, 8 query blocks, section 24, "
            "grid 192");
}

// ---- splits ------------------------------------------------------------------------------------

int32_t const kTable[8] = {};

FwdParams decode(int batch, int seqlen_q, int seqlen_k) {
  FwdParams p = problem(128, seqlen_q, seqlen_k);
  p.batch = batch;
  return p;
}

TEST(heads_of_a_group_share_a_tile) {
  FwdPlan plan = plan_forward(decode(64, 1, 1000), kA100);  // 4 rows
  EXPECT(plan.key.tile == TileKind::kFewRows);
  EXPECT_EQ(plan.grid, 64 * 2);
  EXPECT_EQ(plan.num_splits, 1);
  EXPECT_EQ(plan.workspace.bytes, 0);
  FwdParams p = decode(64, 40, 1000);  // 160 rows
  p.pages = {.block_table = kTable, .table_stride = 4, .page_size = 256, .num_pages = 8};
  plan = plan_forward(p, kA100);
  EXPECT(plan.key.tile == TileKind::kManyRows);
  EXPECT_EQ(plan.num_m_blocks, 2);
  EXPECT_EQ(plan.grid, 2 * 64 * 2);
}

TEST(few_queries_are_packed_where_that_saves_rows) {
  EXPECT(plan_forward(decode(64, 40, 1000), kA100).key.tile == TileKind::kManyRows);  // 256 of 512
  EXPECT(plan_forward(decode(64, 100, 1000), kA100).key.tile == TileKind::kRegular);  // 512 of 512
  EXPECT(plan_forward(decode(64, 2000, 1000), kA100).key.tile == TileKind::kRegular);
  EXPECT(plan_forward(decode(1, kMaxSeqlen, 1000), kA100).key.tile == TileKind::kRegular);
}

TEST(keys_are_split_until_the_device_is_full) {
  FwdPlan const plan = plan_forward(decode(1, 1, 32768), kA100);
  EXPECT(plan.num_splits > 32);
  EXPECT_EQ(plan.grid, 2 * plan.num_splits);
  EXPECT_EQ(plan.combine_grid, 8);
  EXPECT(plan.workspace.bytes >= plan.num_splits * 8 * (128 + 1) * 4);
  EXPECT_EQ(plan_forward(decode(1, 1, 256), kA100).num_splits, 1);      // merging would cost more
  EXPECT_EQ(plan_forward(decode(216, 1, 32768), kA100).num_splits, 1);  // full
  int const halves = plan_forward(decode(54, 1, 32768), kA100).num_splits;
  EXPECT_EQ(halves, 2);  // 108 blocks for 216 places
}

TEST(a_window_bounds_the_splits) {
  FwdParams p = decode(1, 1, 1 << 20);
  p.window = {.left = 255, .right = 0};
  EXPECT_EQ(plan_forward(p, kA100).num_splits, 1);
}

TEST(splits_may_be_given) {
  FwdParams p = decode(1, 1, 64);
  for (int splits : {1, 3, 128}) {
    p.num_splits = splits;
    EXPECT_EQ(plan_forward(p, kA100).num_splits, splits);
  }
  p.num_splits = 129;
  EXPECT(error_of(p).find("129") != std::string::npos);
  p.num_splits = 2;
  p.dropout.drop_prob = 0.1f;
  EXPECT(error_of(p).find("dropout") != std::string::npos);
}

TEST(long_keys_of_few_queries_are_split_without_a_cache) {
  EXPECT(plan_forward(problem(128, 128, 65536), kA100).num_splits > 1);
  EXPECT(plan_forward(problem(128, 128, 256), kA100).key.tile == TileKind::kRegular);
  FwdParams p = problem(128, 128, 65536);
  p.num_splits = 1;
  EXPECT(plan_forward(p, kA100).key.tile == TileKind::kRegular);
}

TEST(split_plan_is_printable) {
  EXPECT_EQ(to_string(plan_forward(decode(54, 1, 32768), kA100)),
            "float16 head_dim<=128 plain split, few rows: tile 16x128, warps 1x4, 1 row blocks, 2 "
            "splits, grid 216, workspace 445952 bytes");
}

// ---- backward ---------------------------------------------------------------------------------

BwdParams backward_problem(int head_dim, int seqlen_q = 1000, int seqlen_k = 1000) {
  BwdParams p;
  p.forward = problem(head_dim, seqlen_q, seqlen_k);
  return p;
}

TEST(backward_takes_the_kernel_of_its_bucket_and_variant) {
  for (int bucket : {32, 64, 96, 128, 192, 256}) {
    BwdPlan const plan = plan_backward(backward_problem(bucket - 8), kA100);
    EXPECT_EQ(plan.key.bucket, bucket);
    EXPECT_EQ(plan.tile.head_dim, bucket);
    EXPECT(plan.key.tile == TileKind::kRegular);
    EXPECT_EQ(plan_backward(backward_problem(bucket), kRtx3090).key.tile == TileKind::kSmall,
              bucket > 96);
  }
  BwdParams p = backward_problem(64);
  p.forward.dropout.drop_prob = 0.1f;
  EXPECT(plan_backward(p, kA100).key.variant == Variant::kDropout);
}

TEST(backward_grids_cover_all_keys_and_queries) {
  for (int seqlen : {1, 63, 64, 65, 129, 4096}) {
    BwdPlan const plan = plan_backward(backward_problem(128, seqlen, 2 * seqlen), kA100);
    EXPECT_EQ(plan.grid, (2 * seqlen + plan.tile.block_n - 1) / plan.tile.block_n * 3 * 2);
    EXPECT_EQ(plan.rows_grid, (seqlen + plan.tile.block_m - 1) / plan.tile.block_m * 3 * 8);
  }
  EXPECT_EQ(plan_backward(backward_problem(64, 0), kA100).rows_grid, 0);
  EXPECT(plan_backward(backward_problem(64, 0), kA100).grid > 0);  // zeroes dK and dV
}

// float32 dQ and 8 bytes a row; nothing of it grows with the number of key blocks.
TEST(backward_workspace_is_dq_and_two_numbers_a_row) {
  BwdParams p = backward_problem(128, 1024, 1024);
  int64_t const rows = 3 * 8 * 1024;
  EXPECT_EQ(plan_backward(p, kA100).workspace.bytes, rows * (128 * 4 + 8));
  p.deterministic = true;
  int64_t const tiles = rows / plan_backward(p, kA100).tile.block_m;
  EXPECT_EQ(plan_backward(p, kA100).workspace.bytes, rows * (128 * 4 + 8) + tiles * 4 + 256);
  p.forward.seqs_k.max_seqlen = 1 << 20;
  EXPECT_EQ(plan_backward(p, kA100).workspace.bytes, rows * (128 * 4 + 8) + tiles * 4 + 256);
}

// Whatever cu_seqlens hold, the tiles of each sequence lie inside the workspace.
TEST(backward_tiles_of_packed_sequences_are_in_bounds) {
  for (auto const& cu_seqlens : {std::array<int32_t, 5>{0, 1, 2, 3, 257},
                                 {0, 63, 129, 129, 257},
                                 {0, 257, 257, 257, 257},
                                 {0, 1000, -5, 257, 13},
                                 {256, 257, 256, 257, 256},
                                 {200, 257, 0, 257, 0}}) {
    BwdParams p = backward_problem(64, 257);
    p.forward.batch = 4;
    p.forward.seqs_q.cu_seqlens = cu_seqlens.data();
    p.forward.seqs_q.total = 257;
    BwdPlan const plan = plan_backward(p, kA100);
    sm80::BwdWorkspace const workspace{.tiles_per_head = plan.workspace.tiles_per_head,
                                       .layout = plan.tile.grad_q()};
    for (int32_t batch = 0; batch < 4; ++batch) {
      SeqInfo const q = seq_info(p.forward.seqs_q, batch);
      int32_t const first = workspace.first_tile(p.forward.seqs_q, batch, q.first_row);
      int32_t const block_m = plan.tile.block_m;
      EXPECT(first >= 0 && first + (q.length + block_m - 1) / block_m <= workspace.tiles_per_head);
    }
  }
}

TEST(backward_plan_is_printable) {
  EXPECT_EQ(to_string(plan_backward(backward_problem(128), kA100)),
            "backward float16 head_dim<=128 plain: tile 128 keys x 64 queries, warps 4x2, 8 key "
            "blocks, 16 query tiles, section 5, grid 48, unordered, workspace 12779520 bytes");
}

}  // namespace

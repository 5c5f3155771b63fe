// Unit tests of csrc/sm90/plan: what the family serves; problem and device -> kernel, tile and
// grid.

#include <string>

#include "check.h"
#include "host/error.h"
#include "sm90/plan.h"

namespace {

using namespace fa2;
using namespace fa2::sm90;

constexpr DeviceInfo kH100{
    .arch = 90, .sm_count = 132, .smem_per_block = 227 * 1024, .l2_bytes = 50 << 20};

TensorRef rows_of(int64_t seqlen, int64_t heads, int64_t width) {
  return {
      .batch_stride = seqlen * heads * width, .row_stride = heads * width, .head_stride = width};
}

FwdParams problem(int width, int width_v, int seqlen_q = 1000, int seqlen_k = 1000) {
  FwdParams p;
  p.batch = 3;
  p.num_heads = 8;
  p.num_heads_kv = 2;
  p.head_dim = width;
  p.head_dim_v = width_v;
  p.seqs_q.max_seqlen = seqlen_q;
  p.seqs_k.max_seqlen = seqlen_k;
  p.q = rows_of(seqlen_q, 8, width);
  p.k = rows_of(seqlen_k, 2, width);
  p.v = rows_of(seqlen_k, 2, width_v);
  return p;
}
FwdParams problem(int width) { return problem(width, width); }

FwdPlan plan(FwdParams const& p) { return plan_forward(p, kH100); }

bool is_served(FwdParams const& p) { return not_served(p) == nullptr; }

TEST(heads_are_rounded_up_to_a_bucket) {
  struct {
    int width, width_v;
    Bucket bucket;
  } const cases[] = {{40, 40, 64},          {64, 40, 64},    {72, 64, 96},
                     {128, 8, 128},         {136, 136, 192}, {192, 128, {192, 128}},
                     {136, 64, {192, 128}}, {256, 200, 256}};
  for (auto const& [width, width_v, bucket] : cases) {
    EXPECT(plan(problem(width, width_v)).key.bucket == bucket);
    EXPECT_EQ(plan(problem(width, width_v)).tile.head_dim, bucket.head_dim);
    EXPECT_EQ(plan(problem(width, width_v)).tile.head_dim_v, bucket.head_dim_v);
  }
}

TEST(other_heads_are_not_served) {
  for (int width : {8, 32, 36, 264, 512}) EXPECT(!is_served(problem(width)));
}

TEST(what_else_is_not_served) {
  int32_t const lengths[4] = {};
  auto const with = [](auto change) {
    FwdParams p = problem(128);
    change(p);
    return p;
  };
  EXPECT(is_served(problem(128)));
  EXPECT(!is_served(with([](auto& p) { p.dtype = DType::kFloat32; })));
  EXPECT(!is_served(with([](auto& p) { p.num_splits = 2; })));
  EXPECT(!is_served(with([&](auto& p) { p.pages.block_table = lengths; })));
  EXPECT(!is_served(with([&](auto& p) { p.seqs_k.seqused = lengths; })));
  EXPECT(!is_served(with([&](auto& p) { p.seqs_k.leftpad = lengths; })));
  EXPECT(!is_served(with([](auto& p) { p.quantised.type = CodeType::kInt8; })));
  EXPECT(is_served(with([&](auto& p) { p.seqs_k.seqused = p.seqs_k.cu_seqlens = lengths; })));
  EXPECT(is_served(with([](auto& p) { p.k.batch_stride = 0; })));
  // One row for all is one, of whatever lengths: a packed tensor may hold longer sequences.
  EXPECT(!is_served(with([&](auto& p) {
    p.seqs_q.cu_seqlens = lengths;
    p.seqs_q.max_seqlen = 1;
    p.seqs_q.total = 3;
    p.q.row_stride = 0;
  })));
  EXPECT(!is_served(with([](auto& p) { p.k.head_stride = 0; })));
  EXPECT(!is_served(with([](auto& p) { p.q.row_stride = 1028; })));
  EXPECT(!is_served(with([](auto& p) { p.v.row_stride = int64_t(1) << 39; })));
}

TEST(pages_are_served_by_varlen_calls_where_boxes_have_whole_patterns) {
  int32_t const lengths[4] = {};
  auto const served = [&](int page_size, auto change) {
    FwdParams p = problem(128);
    p.pages = {.block_table = lengths, .table_stride = 4, .page_size = page_size, .num_pages = 9};
    p.seqs_q.cu_seqlens = p.seqs_k.seqused = lengths;
    p.seqs_q.total = 3000;
    change(p);
    return is_served(p);
  };
  auto const nothing = [](FwdParams&) {};
  for (int page_size : {8, 16, 24, 64, 256, 4096}) EXPECT(served(page_size, nothing));
  for (int page_size : {1, 4, 12, 20, 100}) EXPECT(!served(page_size, nothing));
  float bias[1] = {};
  int64_t const offsets[1] = {};
  EXPECT(served(16, [](auto& p) { p.score_mod.softcap = 2; }));
  EXPECT(!served(16, [](auto& p) { p.dropout.drop_prob = 0.5; }));
  EXPECT(!served(16, [&](auto& p) { p.score_mod.bias.data = bias; }));
  EXPECT(!served(16, [&](auto& p) { p.block_mask.row_offsets = offsets; }));
  EXPECT(!served(16, [&](auto& p) { p.seqs_k.leftpad = lengths; }));
  EXPECT(!served(16, [](auto& p) { p.seqs_k.appended = 1; }));
  EXPECT(!served(16, [](auto& p) { p.num_splits = 2; }));
}

TEST(whether_a_call_is_served_is_no_matter_of_batch_and_lengths) {
  for (int seqlen : {0, 1, 17, 1 << 20}) {
    for (int batch : {0, 1, 1000}) {
      FwdParams p = problem(128, 128, seqlen, seqlen);
      p.batch = batch;
      EXPECT(is_served(p));
    }
  }
}

TEST(windows_have_shorter_steps_at_128) {
  for (Bucket const& bucket : kBuckets) {
    FwdParams p = problem(bucket.head_dim, bucket.head_dim_v);
    EXPECT(plan(p).key.steps == StepKind::kLong);
    p.window.right = 0;
    EXPECT(plan(p).key.steps == (bucket == Bucket(128) ? StepKind::kShort : StepKind::kLong));
    p.score_mod.softcap = 2;
    EXPECT(plan(p).key.steps == StepKind::kLong);
  }
}

TEST(modified_scores_have_kernels_of_their_own) {
  float const slopes[8] = {};
  float bias[1] = {};
  auto const variant_with = [](auto change) {
    FwdParams p = problem(128);
    change(p);
    return plan(p).key.variant;
  };
  EXPECT(variant_with([](auto&) {}) == Variant::kPlain);
  EXPECT(variant_with([](auto& p) { p.softmax_scale = 0; }) == Variant::kModified);
  EXPECT(variant_with([](auto& p) { p.score_mod.softcap = 2; }) == Variant::kModified);
  EXPECT(variant_with([&](auto& p) { p.score_mod.alibi_slopes = slopes; }) == Variant::kModified);
  EXPECT(variant_with([&](auto& p) { p.score_mod.bias.data = bias; }) == Variant::kModified);
  EXPECT(variant_with([](auto& p) { p.dropout.drop_prob = 0.5; }) == Variant::kModified);
  int64_t const offsets[1] = {};
  EXPECT(variant_with([&](auto& p) { p.block_mask.row_offsets = offsets; }) == Variant::kListed);
  for (Bucket const& bucket : kBuckets) {
    auto const keys = [&](Variant v) { return fwd_tile(bucket, v, StepKind::kLong).block_n; };
    EXPECT_EQ(keys(Variant::kModified) % 32, 0);  // as random numbers are drawn
    EXPECT_EQ(keys(Variant::kListed) % BlockMask::kBlock, 0);
  }
}

TEST(heads_of_a_group_share_tiles_where_these_have_whole_queries) {
  FwdParams p = problem(128);
  EXPECT_EQ(plan(p).pack, 4);
  EXPECT_EQ(plan(p).num_m_blocks, 32);  // of 32 queries
  p.num_heads = 6;
  EXPECT_EQ(plan(p).pack, 1);
  EXPECT_EQ(plan(p).num_m_blocks, 8);
  p.head_dim = p.head_dim_v = 64;  // tiles of 192 rows
  EXPECT_EQ(plan(p).pack, 3);
}

TEST(heads_with_biases_or_dropout_have_tiles_of_their_own) {
  float bias[1] = {};
  FwdParams p = problem(128);
  p.score_mod.softcap = 2;
  EXPECT_EQ(plan(p).pack, 4);
  p.score_mod.relative_bias.data = bias;
  EXPECT_EQ(plan(p).pack, 1);
  p = problem(128);
  p.dropout.drop_prob = 0.5;
  EXPECT_EQ(plan(p).pack, 1);
}

TEST(heads_with_one_block_mask_share_tiles) {
  int64_t const offsets[1] = {};
  FwdParams p = problem(128);
  p.block_mask.row_offsets = offsets;
  for (int heads : {1, p.num_heads_kv}) {
    p.block_mask.heads = heads;
    EXPECT_EQ(plan(p).pack, 4);
    EXPECT(plan(p).counts_tiles);
  }
  p.block_mask.heads = p.num_heads;
  EXPECT_EQ(plan(p).pack, 1);
}

TEST(grid_is_what_the_device_holds) {
  FwdParams p = problem(128);
  EXPECT_EQ(plan(p).num_tiles, 32 * 2 * 3);
  EXPECT_EQ(plan(p).grid, 132);
  p.batch = 1;
  EXPECT_EQ(plan(p).grid, 64);
}

TEST(tiles_are_counted_where_they_may_take_different_times) {
  FwdParams p = problem(128);
  EXPECT(!plan(p).counts_tiles);
  EXPECT_EQ(plan(p).workspace_bytes, 0);
  p.window.right = 0;
  EXPECT(plan(p).counts_tiles);
  EXPECT_EQ(plan(p).workspace_bytes, 4);
  p.batch = 1;  // each CTA has one
  EXPECT(!plan(p).counts_tiles);
}

TEST(sections_are_what_fits_half_of_the_l2_cache) {
  int64_t const pair_bytes = 16384 * 128 * 2 * 2;
  EXPECT_EQ(plan(problem(128, 128, 1000, 16384)).section, (kH100.l2_bytes / 2) / pair_bytes);
  EXPECT_EQ(plan(problem(128, 128, 1000, 1 << 20)).section, 1);
  FwdParams p = problem(128, 128, 1000, 1 << 20);
  p.num_heads = 6;  // not packed: the three heads of a group
  EXPECT_EQ(plan(p).section, 3);
}

TEST(nothing_to_do_has_no_ctas) {
  EXPECT_EQ(plan(problem(128, 128, 0, 10)).grid, 0);
  FwdParams p = problem(128);
  p.batch = 0;
  EXPECT_EQ(plan(p).grid, 0);
}

TEST(what_is_refused) {
  auto const error_of = [](FwdParams const& p) -> std::string {
    try {
      plan(p);
    } catch (Error const& error) {
      return error.what();
    }
    return "";
  };
  EXPECT(error_of(problem(512)).find("do not serve heads of that width") != std::string::npos);
  FwdParams p = problem(64, 64, kMaxSeqlen, 10);
  p.batch = 1 << 20;
  EXPECT(error_of(p).find("query tiles") != std::string::npos);
  float bias[1] = {};
  p = problem(128);
  p.score_mod.bias = {.data = bias, .dtype = DType::kBFloat16};
  EXPECT(error_of(p).find("bias in bfloat16 for q in float16") != std::string::npos);
}

TEST(plan_is_printable) {
  FwdParams p = problem(128);
  p.window.right = 0;
  EXPECT_EQ(
      to_string(plan(p)),
      "sm90 float16 head_dim<=128 plain short steps: tile 128x128, 32 query blocks of 4 heads, "
      "section 6, 192 tiles counted, grid 132");
}

BwdParams gradient_of(FwdParams const& p) {
  BwdParams params{.forward = p};
  params.grad_out = rows_of(p.seqs_q.max_seqlen, p.num_heads, p.head_dim_v);
  return params;
}

BwdPlan backward(FwdParams const& p) { return plan_backward(gradient_of(p), kH100); }

bool has_gradient(FwdParams const& p) { return not_served(gradient_of(p)) == nullptr; }

TEST(which_gradients_are_served) {
  double partial_lse[1] = {};
  int64_t const offsets[1] = {};
  auto const with = [](auto change) {
    FwdParams p = problem(128);
    change(p);
    return p;
  };
  EXPECT(has_gradient(problem(128)));
  EXPECT(has_gradient(with([&](auto& p) { p.block_mask.row_offsets = offsets; })));
  EXPECT(has_gradient(with([&](auto& p) { p.partial_lse = partial_lse; })));
  EXPECT(has_gradient(with([](auto& p) { p.dropout.drop_prob = 0.5; })));
  EXPECT(has_gradient(with([](auto& p) { p.score_mod.softcap = 2; })));
  EXPECT(has_gradient(with([](auto& p) { p.softmax_scale = 0; })));
  EXPECT(!has_gradient(with([](auto& p) { p.k.head_stride = 0; })));
  BwdParams same_for_all = gradient_of(problem(128));
  same_for_all.grad_out.row_stride = 0;
  EXPECT(not_served(same_for_all) != nullptr);
}

TEST(which_heads_have_gradients) {
  for (int width : {40, 64, 72, 128, 136, 192, 256}) {
    EXPECT(has_gradient(problem(width)));
    EXPECT_EQ(backward(problem(width)).tile.block_n, width <= 128 ? 128 : 64);
  }
  EXPECT(has_gradient(problem(192, 128)));
  for (int width : {32, 264}) EXPECT(!has_gradient(problem(width)));
}

TEST(which_heads_have_gradients_of_modified_scores) {
  for (int width : {40, 64, 96, 128, 136, 192, 256}) {
    FwdParams p = problem(width);
    p.score_mod.softcap = 2;
    EXPECT_EQ(has_gradient(p), width <= 192);
    if (has_gradient(p)) {
      EXPECT(backward(p).key.variant == Variant::kModified);
    }
  }
}

TEST(which_heads_have_gradients_under_a_block_mask) {
  int64_t const offsets[1] = {};
  for (int width : {40, 64, 96, 128, 136, 192, 256}) {
    FwdParams p = problem(width);
    p.block_mask.row_offsets = offsets;
    EXPECT_EQ(has_gradient(p), width <= 192);
    if (!has_gradient(p)) continue;
    BwdPlan const plain = backward(problem(width)), listed = backward(p);
    EXPECT(listed.key.variant == Variant::kListed);
    EXPECT_EQ(listed.grid, plain.grid);
    EXPECT(listed.mask_rows_grid > 0 && listed.mask_columns_grid > 0);
    EXPECT(listed.workspace_bytes > plain.workspace_bytes);
    EXPECT_EQ(plain.mask_rows_grid + plain.mask_columns_grid, 0);
  }
}

TEST(a_gradient_has_a_cta_for_each_key_block_and_memory_for_each_query_tile) {
  BwdPlan const plan = backward(problem(128, 128, 1000, 300));
  EXPECT(plan.key == BwdKey(DType::kFloat16, 128, Variant::kPlain));
  EXPECT_EQ(plan.num_n_blocks, 3);
  EXPECT_EQ(plan.grid, 3 * 3 * 2);
  EXPECT_EQ(plan.num_m_blocks, 16);
  EXPECT_EQ(plan.rows_grid, 16 * 3 * 8);
  EXPECT_EQ(plan.workspace.tiles_per_head, 3 * 16);
  int64_t const tiles = 8 * 3 * 16;
  EXPECT_EQ(plan.workspace_bytes, tiles * (64 * 2 + 64 * 128) * 4);
}

TEST(a_fixed_order_takes_a_semaphore_for_each_query_tile) {
  BwdParams params = gradient_of(problem(128));
  params.deterministic = true;
  BwdPlan const plan = plan_backward(params, kH100);
  EXPECT(plan.ordered);
  EXPECT_EQ(plan.workspace.ticket - plan.workspace.semaphores, 8 * 3 * 16 * 4);
  params.forward.batch = 0;
  EXPECT(!plan_backward(params, kH100).ordered);
}

TEST(the_plan_of_a_gradient_is_printable) {
  EXPECT_EQ(
      to_string(backward(problem(128, 128, 1000, 300))),
      "backward sm90 float16 head_dim<=128 plain: tile 128 keys x 64 queries, 3 key blocks, 16 "
      "query tiles, section 6, grid 18, unordered, workspace 12779520 bytes");
}

}  // namespace

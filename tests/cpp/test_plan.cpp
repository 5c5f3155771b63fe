// Unit tests of csrc/sm80/plan: problem and device -> kernel, tile and grid.

#include <array>
#include <string>

#include "check.h"
#include "core/block_mask.h"
#include "core/seq_info.h"
#include "host/error.h"
#include "sm80/backward/args.h"
#include "sm80/plan_beside.h"

namespace {

using namespace fa2;
using namespace fa2::sm80;

constexpr DeviceInfo kA100{
    .arch = 80, .sm_count = 108, .smem_per_block = 163 * 1024, .l2_bytes = 40 << 20};
constexpr DeviceInfo kRtx3090{
    .arch = 86, .sm_count = 82, .smem_per_block = 99 * 1024, .l2_bytes = 6 << 20};

FwdParams problem(int head_dim, int seqlen_q = 1000, int seqlen_k = 1000) {
  FwdParams p;
  p.batch = 3;
  p.num_heads = 8;
  p.num_heads_kv = 2;
  p.head_dim = p.head_dim_v = head_dim;
  p.seqs_q.max_seqlen = seqlen_q;
  p.seqs_k.max_seqlen = seqlen_k;
  return p;
}

// The launch of a problem that needs but one.
FwdPlan::Launch only_launch(FwdParams const& p, DeviceInfo const& device = kA100) {
  FwdPlan const plan = plan_forward(p, device);
  EXPECT_EQ(plan.num_launches, 1);
  return plan.all[0];
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
  for (int bucket : {32, 64, 96, 128, 192, 256, 512}) {
    EXPECT(only_launch(problem(bucket)).key.bucket == bucket);
    EXPECT(only_launch(problem(bucket - 8)).key.bucket == bucket);
  }
}

std::string backward_error_of(FwdParams const& p, DeviceInfo const& device) {
  try {
    plan_backward({.forward = p}, device);
  } catch (Error const& error) {
    return error.what();
  }
  return "";
}

BwdTile backward_tile(FwdParams const& p, DeviceInfo const& device = kA100) {
  BwdParams params;
  params.forward = p;
  return plan_backward(params, device).tile;
}

TEST(widths_take_the_narrowest_bucket_that_holds_both) {
  struct {
    int head_dim, head_dim_v;
    Bucket bucket;
  } const cases[] = {{192, 128, {192, 128}}, {136, 8, {192, 128}}, {136, 136, 192}, {128, 128, 128},
                     {128, 64, 128},         {64, 128, 128},       {64, 32, 64},    {32, 64, 64},
                     {128, 192, 192},        {200, 128, 256},      {8, 256, 256}};
  for (auto const& [head_dim, head_dim_v, bucket] : cases) {
    FwdParams p = problem(head_dim);
    p.head_dim_v = head_dim_v;
    FwdPlan::Launch const launch = only_launch(p);
    EXPECT(launch.key.bucket == bucket);
    EXPECT(Bucket(launch.tile.head_dim, launch.tile.head_dim_v) == bucket);
    BwdTile const tile = backward_tile(p);
    EXPECT(Bucket(tile.head_dim, tile.head_dim_v) == bucket);
  }
}

TEST(wider_heads_have_one_bucket) {
  int const widths[][2] = {{264, 8}, {8, 264}, {512, 512}, {320, 504}};
  for (auto const& [head_dim, head_dim_v] : widths) {
    FwdParams p = problem(head_dim);
    p.head_dim_v = head_dim_v;
    for (DeviceInfo const& device : {kA100, kRtx3090}) {
      FwdPlan::Launch const launch = only_launch(p, device);
      EXPECT(launch.key.bucket == 512);
      EXPECT(launch.key.tile == (device.arch == 80 ? TileKind::kRegular : TileKind::kSmall));
    }
    EXPECT_EQ(backward_tile(p).block_n, 32);
    EXPECT_EQ(backward_tile(p, kRtx3090).block_n, 16);
  }
}

TEST(a_pair_has_a_small_tile_in_the_backward_pass_alone) {
  FwdParams p = problem(192);
  p.head_dim_v = 128;
  EXPECT(only_launch(p, kRtx3090).key.tile == TileKind::kRegular);
  EXPECT_EQ(backward_tile(p).block_m, 128);
  EXPECT_EQ(backward_tile(p, kRtx3090).block_m, 64);
}

TEST(variant_follows_from_what_the_problem_asks) {
  float const slopes[8] = {};
  FwdParams p = problem(64);
  EXPECT(only_launch(p).key.variant == Variant::kPlain);
  p.score_mod.softcap = 30.f;
  EXPECT(only_launch(p).key.variant == Variant::kModified);
  p.score_mod = {};
  p.softmax_scale = 0;  // through the softcap
  EXPECT(only_launch(p).key.variant == Variant::kModified);
  p.softmax_scale = 1;
  p.score_mod = {.alibi_slopes = slopes};
  EXPECT(only_launch(p).key.variant == Variant::kModified);
  p.dropout.drop_prob = 0.1f;
  EXPECT(only_launch(p).key.variant == Variant::kDropout);
}

TEST(biases_are_never_split) {
  float entries[1] = {};
  FwdParams p = problem(64, 1, 10000);
  p.score_mod.softcap = 30.f;
  EXPECT(only_launch(p).is_split());
  for (bool relative : {false, true}) {
    p.score_mod = {};
    (relative ? p.score_mod.relative_bias : p.score_mod.bias).data = entries;
    EXPECT(only_launch(p).key.variant == Variant::kModified);
    EXPECT(!only_launch(p).is_split());
    p.num_splits = 2;
    EXPECT(error_of(p).find("bias is for dense queries and keys that are not split") !=
           std::string::npos);
    p.num_splits = 0;
  }
}

// With a block mask of three sequences and two heads.
FwdParams listed_problem(int head_dim, int seqlen_q = 1000, int seqlen_k = 1000) {
  static int64_t const offsets[1] = {};
  static int32_t const lists[1] = {};
  static uint64_t const bits[1] = {};
  FwdParams p = problem(head_dim, seqlen_q, seqlen_k);
  p.block_mask = {.row_offsets = offsets,
                  .batch_stride = 2 * (mask_blocks(seqlen_q) + 1),
                  .heads = 2,
                  .cols = lists,
                  .tiles = lists,
                  .bits = bits,
                  .num_entries = 1000,
                  .num_tiles = 5};
  return p;
}

TEST(block_masks_have_kernels_whose_tiles_are_made_of_blocks) {
  for (int bucket : {32, 64, 96, 128, 192, 256}) {
    for (double drop_prob : {0., 0.1}) {
      for (DeviceInfo const& device : {kA100, kRtx3090}) {
        // Of few rows too, which would be packed or split otherwise.
        FwdParams p = listed_problem(bucket, 3, 9000);
        p.dropout.drop_prob = drop_prob;
        FwdPlan::Launch const launch = only_launch(p, device);
        Variant const variant = drop_prob > 0 ? Variant::kListedDropout : Variant::kListed;
        EXPECT(launch.key.variant == variant);
        EXPECT(!launch.is_split());
        EXPECT_EQ(launch.tile.block_m % 64, 0);
        EXPECT_EQ(64 % launch.tile.block_n, 0);
        BwdPlan const backward = plan_backward({.forward = p}, device);
        EXPECT(backward.key.variant == variant);
        EXPECT_EQ(64 % backward.tile.block_m, 0);
        EXPECT(backward.tile.block_n == 32 || backward.tile.block_n == 64 ||
               backward.tile.block_n == 128);
      }
    }
  }
}

TEST(block_masks_of_wider_heads_need_a_large_shared_memory) {
  FwdParams const p = listed_problem(512);
  EXPECT_EQ(only_launch(p).tile.block_m, 64);
  EXPECT_EQ(backward_tile(p).block_n, 32);
  for (std::string const& error : {error_of(p, kRtx3090), backward_error_of(p, kRtx3090)}) {
    EXPECT(error.find("need 160 KiB of shared memory") != std::string::npos);
  }
}

TEST(biases_under_a_block_mask_are_for_the_kernels_with_dropout) {
  float entries[1] = {};
  FwdParams p = listed_problem(64);
  p.score_mod.bias.data = entries;
  EXPECT(only_launch(p).key.variant == Variant::kListedDropout);
  EXPECT(plan_backward({.forward = p}, kA100).key.variant == Variant::kListedDropout);
}

TEST(block_masks_are_checked) {
  auto const refused = [](auto const& change) {
    FwdParams p = listed_problem(64);
    change(p);
    return error_of(p).find("block mask") != std::string::npos;
  };
  int32_t const lengths[4] = {};
  EXPECT(!refused([](FwdParams&) {}));
  EXPECT(refused([](FwdParams& p) { p.window.right = 0; }));
  EXPECT(refused([](FwdParams& p) { p.window.left = 5; }));
  EXPECT(refused([](FwdParams& p) { p.num_splits = 2; }));
  EXPECT(refused([&](FwdParams& p) { p.seqs_q.cu_seqlens = lengths; }));
  EXPECT(refused([&](FwdParams& p) { p.seqs_k.seqused = lengths; }));
  EXPECT(refused([&](FwdParams& p) { p.pages.block_table = lengths; }));
  EXPECT(refused([](FwdParams& p) { p.block_mask.heads = 3; }));
  EXPECT(refused([](FwdParams& p) { p.block_mask.heads = 0; }));
  EXPECT(refused([](FwdParams& p) { p.block_mask.num_entries = -1; }));
  EXPECT(refused([](FwdParams& p) { p.block_mask.cols = nullptr; }));
  EXPECT(refused([](FwdParams& p) { p.block_mask.bits = nullptr; }));
}

TEST(wide_heads_have_a_tile_for_little_shared_memory) {
  for (int head_dim : {32, 128, 192, 256, 512}) {
    EXPECT(only_launch(problem(head_dim)).key.tile == TileKind::kRegular);
    EXPECT_EQ(only_launch(problem(head_dim), kRtx3090).key.tile == TileKind::kSmall,
              head_dim > 128);
  }
}

TEST(grid_covers_every_query_block_of_every_head) {
  for (int seqlen : {127, 128, 129, 4096}) {
    FwdParams p = problem(128, seqlen, 100);
    p.num_heads_kv = p.num_heads;
    FwdPlan::Launch const plan = only_launch(p);
    EXPECT_EQ(plan.num_m_blocks, (seqlen + plan.tile.block_m - 1) / plan.tile.block_m);
    EXPECT_EQ(plan.grid, plan.num_m_blocks * 3 * 8);
  }
}

// The heads of a group read the same keys and values, so a section holds whole groups.
TEST(section_is_what_fits_half_of_the_l2_cache) {
  int64_t const group_bytes = 16384 * 128 * 2 * 2;
  FwdPlan::Launch const plan = only_launch(problem(128, 1000, 16384));
  EXPECT_EQ(plan.section, (kA100.l2_bytes / 2) / group_bytes * 4);
  EXPECT_EQ(only_launch(problem(128, 1000, 1 << 20)).section, 4);
  EXPECT_EQ(only_launch(problem(128, 1000, 16)).section, 3 * 8);
}

TEST(what_no_kernel_can_run_is_refused) {
  EXPECT(error_of(problem(520)).find("520") != std::string::npos);
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
int32_t const kLengths[65] = {};

FwdParams decode(int batch, int seqlen_q, int seqlen_k) {
  FwdParams p = problem(128, seqlen_q, seqlen_k);
  p.batch = batch;
  return p;
}

FwdParams packed_queries(FwdParams p) {
  p.seqs_q.cu_seqlens = kLengths;
  p.seqs_q.total = int64_t(p.batch) * p.seqs_q.max_seqlen;
  return p;
}

FwdParams paged(FwdParams p) {
  p.pages = {.block_table = kTable, .table_stride = 4, .page_size = 256, .num_pages = 8};
  return p;
}

std::string kinds_of(FwdParams const& p) {
  FwdPlan const plan = plan_forward(p, kA100);
  std::string kinds;
  for (FwdPlan::Launch const& launch : plan.launches()) {
    kinds += "rsfml"[int(launch.key.tile)];
  }
  return kinds;
}

// Over pages with another family's kernel for what is not split.
TEST(sequences_that_are_not_split_are_left_to_others) {
  FwdPlan const plan = plan_beside(packed_queries(paged(decode(64, 500, 100000))), kA100);
  EXPECT_EQ(plan.num_launches, 3);
  EXPECT(leaves_sequences(plan));
  for (FwdPlan::Launch const& launch : plan.launches()) {
    EXPECT(launch.is_split() != is_of_others(launch));
    EXPECT(!launch.is_split() || plan.schedule(launch).selects);
  }
  EXPECT(to_string(plan).find("grid 0") == std::string::npos);
  for (int group : {1, 4, 5, 64, 100}) {
    FwdParams p = packed_queries(paged(decode(64, 500, 100000)));
    p.num_heads = group * p.num_heads_kv;
    SequenceRule const rule = plan_beside(p, kA100).rule;
    for (int queries = 1; queries <= 500; ++queries) {
      for (int keys : {1, 1000, 5000, 100000}) {
        bool const left = kernel_of(rule, queries, keys) == rule.unsplit;
        int const rows = queries * group;
        EXPECT(!left || rows > kFewRows);
        EXPECT(rows <= kFewRows || rows > kMostPackedRows || left == (keys <= 1000));
        EXPECT(left || rows <= 4 * most_packed_rows(group));
      }
    }
    EXPECT(kernel_of(rule, 1, 100000) != rule.unsplit);  // decoding, of any group
  }
  FwdPlan const decoding = plan_beside(packed_queries(paged(decode(64, 1, 100000))), kA100);
  EXPECT(!leaves_sequences(decoding));
  EXPECT_EQ(decoding.num_launches, 1);
}

TEST(heads_of_a_group_share_a_tile) {
  FwdPlan::Launch launch = only_launch(decode(64, 1, 1000));  // 4 rows
  EXPECT(launch.key.tile == TileKind::kFewRows);
  EXPECT_EQ(launch.grid, 64 * 2);
  EXPECT_EQ(launch.combine_grid, 0);
  EXPECT_EQ(plan_forward(decode(64, 1, 1000), kA100).workspace_bytes, 0);
  launch = only_launch(paged(decode(64, 40, 1000)));  // 160 rows
  EXPECT(launch.key.tile == TileKind::kManyRows);
  EXPECT_EQ(launch.num_m_blocks, 2);
  EXPECT_EQ(launch.grid, 2 * 64 * 2);
}

TEST(few_queries_are_packed_where_that_saves_rows) {
  EXPECT_EQ(kinds_of(decode(64, 40, 1000)), "m");   // 256 of 512
  EXPECT_EQ(kinds_of(decode(64, 100, 1000)), "r");  // 512 of 512
  EXPECT_EQ(kinds_of(decode(64, 2000, 1000)), "r");
  EXPECT_EQ(kinds_of(decode(1, kMaxSeqlen, 1000)), "r");
}

// Absorbed multi-head latent attention: heads that attend over one head of 576 columns.
FwdParams latents(int heads, int seqlen_q) {
  static uint16_t const held[8] = {};
  FwdParams p = problem(576, seqlen_q, 4000);
  p.num_heads = heads;
  p.num_heads_kv = 1;
  p.head_dim_v = 512;
  p.k = p.v = {.data = const_cast<uint16_t*>(held), .batch_stride = 576, .row_stride = 576};
  p.seqs_k.seqused = kLengths;
  return p;
}

TEST(keys_of_more_than_512_columns_have_split_kernels_alone) {
  float const slopes[8] = {};
  for (DeviceInfo const& device : {kA100, kRtx3090}) {
    FwdParams p = latents(16, 1);
    EXPECT(only_launch(p, device).key.bucket == Bucket(576, 512));
    EXPECT(only_launch(p, device).key.variant == Variant::kLatents);
    EXPECT(only_launch(p, device).key.tile == TileKind::kFewRows);
    p.score_mod.alibi_slopes = slopes;
    EXPECT(only_launch(p, device).key.variant == Variant::kLatents);
    p.v.data = nullptr;  // apart from keys
    EXPECT(only_launch(p, device).key.variant == Variant::kModified);
    p.score_mod = {};
    EXPECT(only_launch(p, device).key.variant == Variant::kModified);
    p.dropout.drop_prob = 0.1f;
    EXPECT(error_of(p, device).find("go without dropout") != std::string::npos);
    EXPECT(backward_error_of(latents(16, 1), device).find("up to 512") != std::string::npos);
  }
  FwdPlan const large = plan_forward(latents(128, 1), kA100);
  EXPECT_EQ(kinds_of(latents(128, 1)), "l");
  EXPECT_EQ(large.all[0].tile.block_m, 64);
  EXPECT_EQ(only_launch(latents(128, 1), kRtx3090).tile.block_m, 32);
  EXPECT(large.schedule(large.all[0]).kind == TileKind::kManyRows);
  EXPECT_EQ(large.rule.most_many_splits, 64 / 2);
  EXPECT_EQ(kinds_of(packed_queries(latents(16, 8))), "lf");
}

TEST(narrower_keys_that_hold_the_values_are_read_once_in_pages) {
  for (int head_dim : {256, 264, 512}) {
    FwdParams p = latents(16, 1);
    p.head_dim = head_dim;
    p.head_dim_v = 256;
    EXPECT(only_launch(p).key.variant == Variant::kPlain);
    EXPECT((only_launch(paged(p)).key.variant == Variant::kLatents) == (head_dim > 256));
  }
}

// Nothing but a sequence's own lengths chooses its kernel, so where the host does not know them
// there is a launch for each that may be needed.
TEST(packed_sequences_choose_their_kernel_on_the_device) {
  EXPECT_EQ(kinds_of(packed_queries(decode(64, 4, 1000))), "f");
  EXPECT_EQ(kinds_of(packed_queries(decode(64, 5, 1000))), "rmf");
  EXPECT_EQ(kinds_of(packed_queries(paged(decode(64, 5, 1000)))), "mf");
  EXPECT_EQ(kinds_of(packed_queries(paged(decode(64, 4, 1000)))), "f");
  FwdParams p = packed_queries(decode(64, 2000, 2000));
  p.seqs_k.cu_seqlens = kLengths;
  p.seqs_k.total = 64000;
  EXPECT_EQ(kinds_of(p), "rf");
  EXPECT_EQ(plan_forward(p, kA100).workspace_bytes, 0);
  p.dropout.drop_prob = 0.1;
  EXPECT_EQ(kinds_of(p), "r");
  p = decode(64, 128, 65536);  // of a cache: keys may be few or many
  EXPECT_EQ(kinds_of(p), "m");
  p.seqs_k.seqused = kLengths;
  EXPECT_EQ(kinds_of(p), "rm");
}

// The rule of one sequence, for all sizes of what else there is in a call.
TEST(kernels_and_splits_depend_on_the_sequence_alone) {
  for (int seqlen_q : {1, 4, 5, 16, 17, 40, 100, 128, 129, 1000}) {
    for (int seqlen_k : {0, 1, 127, 128, 1000, 5000, 70000}) {
      FwdPlan const alone = plan_forward(decode(1, seqlen_q, seqlen_k), kA100);
      FwdParams others = decode(300, seqlen_q, 1 << 17);
      others.seqs_k.seqused = kLengths;
      FwdPlan const batch = plan_forward(others, kA100);
      TileKind const kind = kernel_of(alone.rule, seqlen_q, seqlen_k);
      EXPECT(alone.all[0].key.tile == kind);
      EXPECT(kernel_of(batch.rule, seqlen_q, seqlen_k) == kind);
      bool launched = false;
      for (FwdPlan::Launch const& launch : batch.launches()) launched |= launch.key.tile == kind;
      EXPECT(launched);
      for (int tiles : {1, 8, 64, 128, 129, 1000}) {
        int32_t const rows = seqlen_q * 4;
        EXPECT_EQ(splits_of(alone.rule, kind, rows, tiles).tiles_each,
                  splits_of(batch.rule, kind, rows, tiles).tiles_each);
      }
    }
  }
}

// However many CTAs share them, and within what the host provides for.
TEST(every_split_has_one_cta_and_one_place) {
  for (int splits : {0, 1, 2, 7, 64, 128}) {
    for (int ctas : {1, 2, 3, 7, 22, 128}) {
      Sharing const sharing{splits, ctas};
      EXPECT_EQ(sharing.begin(0), 0);
      EXPECT_EQ(sharing.begin(ctas), splits);
      EXPECT(splits == 0 || sharing.begin(1) > 0);  // the first CTA adds up
      EXPECT_EQ(sharing.slot(sharing.begin(1)), 1);
      EXPECT_EQ(sharing.slot(splits - 1), sharing.stored() - 1);
      EXPECT(sharing.stored() <= (Sharing{128, ctas}.stored()));
      for (int cta = 0; cta < ctas; ++cta) EXPECT(sharing.begin(cta) <= sharing.begin(cta + 1));
    }
  }
}

// Whether what the plan provides for is enough for a sequence of its bounds.
void expect_room(FwdParams const& p, FwdPlan const& plan, int own_q, int own_k) {
  for (FwdPlan::Launch const& launch : plan.launches()) {
    TileKind const kind = plan.schedule(launch).kind;
    if (kernel_of(plan.rule, own_q, own_k) != kind) continue;
    int const rows = own_q * p.group(), tiles = ceil_div(own_k, launch.tile.block_n);
    Splits const own = splits_of(plan.rule, kind, rows, tiles);
    bool const few = kind == TileKind::kFewRows;
    int const blocks = ceil_div(rows, launch.tile.block_m);
    int const ctas = few ? launch.ctas : own.count;
    EXPECT(blocks * ctas <= launch.ctas);
    int const stored = Sharing{own.count, ctas}.stored();
    if (stored <= 1) continue;
    int const most = few ? Sharing{launch.num_splits, ctas}.stored() : launch.num_splits;
    EXPECT(stored <= most);
    EXPECT_EQ(launch.combine_grid, launch.combine_queries * p.batch * p.num_heads);
    EXPECT(own_q <= launch.combine_queries);
    int const places = launch.workspace.sequence_rows;
    EXPECT(places == 0 ? p.seqs_q.cu_seqlens != nullptr : rows <= places);
    int64_t const floats = most * p.num_heads_kv * launch.workspace.rows * p.head_dim;
    EXPECT(launch.workspace.out + floats * 4 <= plan.workspace_bytes);
  }
}

// Lengths of queries that the host knows, and those on the device.
enum class Queries { kKnown, kPacked, kUsed };

TEST(grids_and_workspaces_suffice_for_every_sequence) {
  struct Heads {
    int head_dim, num_heads, num_heads_kv;
  };
  // At 264 many rows are tiles of 32, and of 64 where values are columns of keys: sequences may
  // have fewer of them than the bound, each with more splits.
  for (auto const& [head_dim, heads, heads_kv] :
       {Heads{128, 8, 2}, {128, 8, 8}, {128, 71, 1}, {128, 256, 1}, {264, 28, 28}, {264, 16, 1}}) {
    for (int seqlen_q : {1, 3, 4, 16, 60, 129, 700}) {
      for (int num_splits : {0, 1, 3, 128}) {
        for (int seqlen_k : {1, 1000, 20000}) {
          for (int i = 0; i < 6; ++i) {
            Queries const queries = Queries(i / 2);
            FwdParams p = paged(decode(3, seqlen_q, seqlen_k));
            p.head_dim = p.head_dim_v = head_dim;
            if (i % 2 == 0) p.v.data = const_cast<int32_t*>(kLengths);  // apart from keys
            p.num_heads = heads;
            p.num_heads_kv = heads_kv;
            if (queries == Queries::kPacked) p = packed_queries(p);
            if (queries == Queries::kUsed) p.seqs_q.seqused = kLengths;
            p.seqs_k.seqused = kLengths;
            p.num_splits = num_splits;
            FwdPlan const plan = plan_forward(p, kA100);
            for (int own_q = queries == Queries::kKnown ? seqlen_q : 1; own_q <= seqlen_q;
                 ++own_q) {
              for (int own_k = 1; own_k <= seqlen_k; own_k += 997) {
                expect_room(p, plan, own_q, own_k);
              }
            }
          }
        }
      }
    }
  }
}

// One KV head, many query heads: the device is filled by splits of its keys.
TEST(one_sequence_with_many_heads_fills_the_device) {
  FwdParams p = paged(decode(1, 1, 65536));
  p.num_heads = 71;
  p.num_heads_kv = 1;
  EXPECT_EQ(only_launch(p).grid, 63);  // of 1024 keys and the rest of a tile
  EXPECT_EQ(only_launch(packed_queries(p)).grid, 63);
}

TEST(ctas_are_added_until_the_device_is_full) {
  FwdPlan::Launch const launch = only_launch(decode(1, 1, 32768));
  EXPECT_EQ(launch.num_splits, 128);
  EXPECT(launch.ctas > 32);
  EXPECT_EQ(launch.grid, 2 * launch.ctas);
  EXPECT_EQ(launch.combine_grid, 8);
  EXPECT_EQ(only_launch(decode(1, 1, 256)).ctas, 1);      // adding up would cost more
  EXPECT_EQ(only_launch(decode(216, 1, 32768)).ctas, 1);  // full
  EXPECT_EQ(only_launch(decode(54, 1, 32768)).ctas, 2);   // 108 blocks for 216 places
}

TEST(a_window_bounds_the_splits) {
  FwdParams p = decode(1, 1, 1 << 20);
  p.window = {.left = 255, .right = 0};
  EXPECT(only_launch(p).num_splits <= 3);
  EXPECT_EQ(only_launch(p).ctas, 1);
}

TEST(splits_may_be_given) {
  FwdParams p = decode(1, 1, 128 * 128);
  for (int splits : {1, 3, 128}) {
    p.num_splits = splits;
    EXPECT_EQ(only_launch(p).num_splits, splits);
    EXPECT_EQ(only_launch(p).ctas, splits);
  }
  p.num_splits = 129;
  EXPECT(error_of(p).find("129") != std::string::npos);
  p.num_splits = 2;
  p.dropout.drop_prob = 0.1f;
  EXPECT(error_of(p).find("dropout") != std::string::npos);
}

TEST(long_keys_of_few_queries_are_split_without_a_cache) {
  EXPECT(only_launch(problem(128, 128, 65536)).num_splits > 1);
  EXPECT_EQ(kinds_of(problem(128, 128, 256)), "r");
  FwdParams p = problem(128, 128, 65536);
  p.num_splits = 1;
  EXPECT_EQ(kinds_of(p), "r");
}

TEST(split_plan_is_printable) {
  EXPECT_EQ(to_string(plan_forward(decode(54, 1, 32768), kA100)),
            "float16 head_dim<=128 plain split, few rows: tile 16x128, warps 1x4, 1 row blocks, "
            "128 splits, 2 CTAs a sequence, grid 216, workspace 14601728 bytes");
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
    EXPECT(plan.key.bucket == bucket);
    EXPECT_EQ(plan.tile.head_dim, bucket);
    EXPECT(plan.key.tile == TileKind::kRegular);
    EXPECT_EQ(plan_backward(backward_problem(bucket), kRtx3090).key.tile == TileKind::kSmall,
              bucket > 64);
  }
  BwdParams p = backward_problem(64);
  p.forward.dropout.drop_prob = 0.1f;
  EXPECT(plan_backward(p, kA100).key.variant == Variant::kDropout);
}

TEST(backward_takes_the_smaller_tile_of_96_where_windows_show_few_keys) {
  auto const is_small = [](BwdParams const& p, DeviceInfo const& device = kA100) {
    return plan_backward(p, device).key.tile == TileKind::kSmall;
  };
  BwdParams p = backward_problem(96, 512, 512);
  EXPECT(!is_small(p));
  p.forward.window.right = 0;
  EXPECT(is_small(p));
  p.forward.seqs_k.max_seqlen = 513;
  EXPECT(!is_small(p));
  p.forward.window.left = 511;
  EXPECT(is_small(p));
  p.forward.window.left = 512;
  EXPECT(!is_small(p));
  // Bits do not depend on upper bounds of lengths.
  p.forward.seqs_k.max_seqlen = 512;
  EXPECT(is_small(p));
  static constexpr int32_t kLengths[4] = {};
  p.forward.seqs_k.seqused = kLengths;
  EXPECT(!is_small(p));
  p.forward.seqs_k = {.cu_seqlens = kLengths, .max_seqlen = 512, .total = 512};
  EXPECT(!is_small(p));
  p.forward.window.left = 0;
  EXPECT(is_small(p));
  // Other kernels of this width have one tile, and other widths are not concerned.
  p.forward.score_mod.softcap = 1;
  EXPECT(!is_small(p));
  EXPECT(!is_small(p, kRtx3090));
  p = backward_problem(128, 512, 512);
  p.forward.window.right = 0;
  EXPECT(!is_small(p));
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
  EXPECT_EQ(plan_backward(p, kA100).workspace_bytes, rows * (128 * 4 + 8));
  p.deterministic = true;
  int64_t const tiles = rows / plan_backward(p, kA100).tile.block_m;
  EXPECT_EQ(plan_backward(p, kA100).workspace_bytes, rows * (128 * 4 + 8) + tiles * 4 + 256);
  p.forward.seqs_k.max_seqlen = 1 << 20;
  EXPECT_EQ(plan_backward(p, kA100).workspace_bytes, rows * (128 * 4 + 8) + tiles * 4 + 256);
}

// The lists by keys: 16 bytes an entry, and some for each block of queries and column of keys.
TEST(backward_workspace_of_a_block_mask_is_bounded_by_its_entries) {
  FwdParams p = listed_problem(128, 1024, 1024);
  int64_t const plain = plan_backward({.forward = problem(128, 1024, 1024)}, kA100).workspace_bytes;
  BwdPlan const listed = plan_backward({.forward = p}, kA100);
  int64_t const masks = 3 * 2, rows = 16, cols = 8;  // of two blocks each
  EXPECT_EQ(listed.mask_rows_grid, masks * rows / 8);
  EXPECT_EQ(listed.mask_columns_grid, masks);
  EXPECT(listed.workspace_bytes >= plain + masks * (rows * 16 + cols * 20) + 1000 * 16);
  EXPECT(listed.workspace_bytes <= plain + masks * (rows * 16 + cols * 20 + 8) + 1000 * 16 + 1280);
  p.block_mask.num_entries += 1024;
  EXPECT_EQ(plan_backward({.forward = p}, kA100).workspace_bytes,
            listed.workspace_bytes + 1024 * 16);
  p.block_mask.batch_stride = 0;  // one for all sequences
  EXPECT_EQ(plan_backward({.forward = p}, kA100).mask_columns_grid, 2);
  EXPECT_EQ(plan_backward({.forward = problem(128)}, kA100).mask_rows_grid, 0);
}

// Room for pieces of long lists: what entries, and the number of lists, allow. Of float32 results.
TEST(long_lists_of_a_block_mask_have_room_for_pieces) {
  FwdParams p = listed_problem(64, 1000, 4096 - 64);
  EXPECT_EQ(only_launch(p).listed.capacity, 0);  // no list has 128 entries
  EXPECT_EQ(plan_forward(p, kA100).workspace_bytes, 0);
  p = listed_problem(64, 1000, 4096);
  FwdPlan::Launch const launch = only_launch(p);
  EXPECT_EQ(launch.listed.units, 6);
  EXPECT_EQ(launch.listed.lists, 8);
  EXPECT_EQ(launch.listed.copies, 4);
  EXPECT_EQ(launch.listed.capacity, 1000 / 64);
  EXPECT_EQ(launch.grid, (6 * 8 + 15) * 4);
  EXPECT_EQ(plan_forward(p, kA100).workspace_bytes,
            (48 + 15) * 32 + 32 + 15 * 4 * 128 * (64 + 2) * 4);
  EXPECT_EQ(to_string(launch.listed), ", up to 15 pieces of the lists of 6 masks");
  p.block_mask.num_entries = 1 << 20;
  EXPECT_EQ(only_launch(p).listed.capacity, 6 * 32);
  p.seqs_q.max_seqlen = 128 * 100;
  EXPECT_EQ(only_launch(p).listed.capacity, 6 * 50);

  p = listed_problem(64, 8192 - 64, 1000);
  EXPECT_EQ(plan_backward({.forward = p}, kA100).listed.capacity, 0);
  p = listed_problem(64, 8192, 1000);
  for (bool deterministic : {false, true}) {
    BwdPlan const backward = plan_backward({.forward = p, .deterministic = deterministic}, kA100);
    EXPECT_EQ(backward.listed.units, 6);
    EXPECT_EQ(backward.listed.copies, 1);
    EXPECT_EQ(backward.listed.capacity, 1000 / 64 * 4);  // for each query head of a group
    EXPECT_EQ(backward.grid, 6 * 8 + 60);
    EXPECT(backward.listed.order ==
           (deterministic ? PieceOrder::kBesideTheList : PieceOrder::kFirst));
  }
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
    BwdWorkspace const workspace{.tiles_per_head = plan.workspace.tiles_per_head,
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

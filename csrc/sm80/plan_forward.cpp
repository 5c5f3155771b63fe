#include <algorithm>
#include <limits>

#include "core/latents.h"
#include "core/positions.h"
#include "host/error.h"
#include "sm80/plan_beside.h"
#include "sm80/plan_listed.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {
namespace {

// What the host knows of the sequences' own lengths.
struct Lengths {
  int32_t least;
  int32_t most;

  bool known() const { return least == most; }
};

Lengths queries_of(FwdParams const& p) {
  int32_t const most = p.seqs_q.max_seqlen;
  bool const known = p.seqs_q.cu_seqlens == nullptr && p.seqs_q.seqused == nullptr;
  return {known ? most : std::min(1, most), most};
}

Lengths keys_of(FwdParams const& p) {
  SeqLens const& k = p.seqs_k;
  bool const known = k.cu_seqlens == nullptr && k.seqused == nullptr && k.leftpad == nullptr;
  return {known ? k.max_seqlen : 0, k.max_seqlen};
}

struct Tiles {
  TileKind many_kind;
  FwdTile unsplit, many, few;

  Tiles(KernelKey const& key, DeviceInfo const& device)
      : many_kind(has_large_tile(key.variant) && device.smem_per_block >= kLargeSmemBytes
                      ? TileKind::kManyRowsLarge
                      : TileKind::kManyRows),
        unsplit(fwd_tile(key.bucket, key.variant, key.tile == TileKind::kSmall)),
        many(split_tile(key.bucket, key.variant, many_kind)),
        few(split_tile(key.bucket, key.variant, TileKind::kFewRows)) {}
};

int32_t slots_of(FwdTile const& tile, DeviceInfo const& device) {
  return device.sm_count * tile.ctas_per_sm;
}

// CTAs of one query that leave results of many rows, in all KV heads: they bound the memory.
constexpr int32_t kManySplitCtas = 64;

int32_t bounded_many_splits(FwdParams const& p, FwdTile const& many) {
  int32_t const blocks = ceil_div(p.group(), many.block_m) * p.num_heads_kv;
  return std::clamp(kManySplitCtas / blocks, 8, kMaxSplits);
}

// Of a call over pages beside sm90: what has more queries than are split is left unsplit.
void leave_unsplit(SequenceRule& rule) {
  rule.split_only = false;
  rule.unsplit_block_m = most_packed_rows(rule.group) / rule.group;
}

SequenceRule sequence_rule(FwdParams const& p, KernelKey const& key, Tiles const& tiles,
                           DeviceInfo const& device) {
  return {
      .unsplit = key.tile,
      .unsplit_only = has_dropout(key.variant) || is_listed(key.variant) || has_bias(p.score_mod) ||
                      is_part(p) || p.partial_lse != nullptr,
      .split_only = p.pages.block_table != nullptr || p.num_splits > 1 ||
                    key.variant == Variant::kCodes || is_split_only(key.bucket),
      .packed_q = !queries_of(p).known(),  // or used in part, which is the same to the host
      .packed_k = p.seqs_k.cu_seqlens != nullptr,
      .group = p.group(),
      .num_splits = p.num_splits,
      .slots = std::max(1, slots_of(tiles.many, device) / p.num_heads_kv),
      .most_many_splits = bounded_many_splits(p, tiles.many),
      .unsplit_block_m = tiles.unsplit.block_m,
      .many_block_m = tiles.many.block_m,
      .many_block_n = tiles.many.block_n,
      .few_block_n = tiles.few.block_n,
      .window = p.window,
  };
}

// Whether a sequence of the call may be one of that kernel.
bool may_run(SequenceRule const& rule, TileKind kind, Lengths q, Lengths k) {
  if (q.known()) {
    return kernel_of(rule, q.most, k.least) == kind || kernel_of(rule, q.most, k.most) == kind;
  }
  if (rule.unsplit_only) return kind == rule.unsplit;
  if (kind == TileKind::kFewRows) return int64_t(q.least) * rule.group <= kFewRows;
  if (int64_t(q.most) * rule.group <= kFewRows) return false;
  if (rule.split_only) return kind == TileKind::kManyRows;
  return kind == rule.unsplit || !rule.packed_k;
}

// Of a block mask: pieces of long lists come first, then tiles.
void plan_rows(FwdParams const& p, FwdPlan::Launch& launch, DeviceInfo const& device,
               WorkspaceLayout& memory) {
  int32_t const block_m = launch.tile.block_m;
  launch.listed = plan_listed(RowLists(p, block_m), PieceOrder::kFirstDown,
                              int64_t(p.batch) * p.num_heads, launch.section);
  launch.grid = listed_grid(launch.listed, "query tiles and pieces");
  take_pieces(launch.listed, row_piece_bytes(block_m, p.head_dim_v), device, memory);
}

FwdPlan::Launch unsplit_launch(FwdParams const& p, KernelKey const& key, FwdTile const& tile,
                               DeviceInfo const& device, WorkspaceLayout& memory) {
  FwdPlan::Launch launch{.key = key, .tile = tile};
  launch.num_m_blocks = ceil_div(p.seqs_q.max_seqlen, tile.block_m);
  // The heads of a group share keys and values.
  int64_t const kv_bytes =
      int64_t(p.seqs_k.max_seqlen) * (p.head_dim + p.head_dim_v) * sizeof(uint16_t);
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  launch.section = section_size(pairs, kv_bytes, device) * p.group();
  launch.grid = checked_grid("query tiles", int64_t(launch.num_m_blocks) * p.batch * p.num_heads);
  if (is_listed(key.variant)) plan_rows(p, launch, device, memory);
  return launch;
}

// Most key tiles that a block of so many queries can see. Windows do not start at tiles.
int32_t visible_tiles(FwdParams const& p, int32_t queries, int32_t block_n) {
  int32_t const keys = p.seqs_k.max_seqlen;
  int32_t const visible = visible_keys(p.window, queries, keys);
  return std::min(ceil_div(keys, block_n), ceil_div(visible, block_n) + 1);
}

// Memory for what is stored of up to `rows` rows of each sequence and KV head.
void take_workspace(FwdParams const& p, FwdPlan::Launch& launch, int32_t slots, int64_t rows,
                    WorkspaceLayout& memory) {
  if (slots <= 1) return;
  FwdPlan::Workspace& w = launch.workspace;
  w.rows = p.batch * rows;
  w.sequence_rows = int32_t(rows);
  if (int64_t const packed = p.seqs_q.total * p.group();
      p.seqs_q.cu_seqlens != nullptr && packed < w.rows) {
    w.rows = packed;
    w.sequence_rows = 0;
  }
  int64_t const places = slots * p.num_heads_kv * w.rows;
  w.states = memory.take(places * int64_t(sizeof(RowState)));
  w.out = memory.take(places * p.head_dim_v * int64_t(sizeof(float)));
  launch.combine_grid =
      checked_grid("queries", int64_t(p.batch) * p.num_heads * launch.combine_queries);
}

// How many CTAs share the splits of a sequence with few rows, which results do not depend on. Time
// is counted in keys that a CTA goes through: CTAs come in waves of as many as the device holds,
// start and end take each some time, and adding up costs a launch and the way through memory.
int32_t choose_ctas(int64_t sequences, int32_t splits, int32_t split_keys, int64_t slots) {
  constexpr int64_t kCtaOverhead = 128, kCombineOverhead = 512, kCombinePerCta = 8;
  int32_t best = 1;
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int32_t ctas = 1; ctas <= splits; ++ctas) {
    int64_t const waves = (sequences * ctas + slots - 1) / slots;
    int64_t time = waves * (int64_t(ceil_div(splits, ctas)) * split_keys + kCtaOverhead);
    if (ctas > 1) time += kCombineOverhead + kCombinePerCta * ctas;
    if (time < shortest) {
      shortest = time;
      best = ctas;
    }
  }
  return best;
}

// More memory than this is not worth the time that it saves.
constexpr int64_t kMostWorkspaceBytes = int64_t(512) << 20;

FwdPlan::Launch few_rows_launch(FwdParams const& p, KernelKey key, FwdTile const& tile,
                                SequenceRule const& rule, DeviceInfo const& device,
                                WorkspaceLayout& memory) {
  key.tile = TileKind::kFewRows;
  Lengths const q = queries_of(p);
  int32_t const queries = std::min(q.most, kFewRows / rule.group), rows = queries * rule.group;
  FwdPlan::Launch launch{.key = key, .tile = tile, .num_m_blocks = 1, .combine_queries = queries};
  int32_t const tiles = visible_tiles(p, queries, tile.block_n);
  int64_t const sequences = int64_t(p.batch) * p.num_heads_kv;
  if (p.num_splits > 0) {
    launch.num_splits = std::max(1, std::min(p.num_splits, tiles));
    launch.ctas = launch.num_splits;
  } else {
    int32_t const least = few_split_tiles(rule, std::max(1, q.least * rule.group));
    launch.num_splits = std::clamp(ceil_div(tiles, least), 1, kMaxSplits);
    int32_t const split_keys = ceil_div(tiles, launch.num_splits) * tile.block_n;
    // Beside longer sequences of a packed batch these few are not worth a launch that combines.
    bool const aside = rule.packed_k && int64_t(q.most) * rule.group > kFewRows;
    launch.ctas =
        aside ? 1 : choose_ctas(sequences, launch.num_splits, split_keys, slots_of(tile, device));
  }
  auto const stored = [&] { return Sharing{launch.num_splits, launch.ctas}.stored(); };
  int64_t const bytes = stored() * sequences * rows * (p.head_dim_v + 2) * int64_t(sizeof(float));
  if (p.num_splits == 0 && bytes > kMostWorkspaceBytes) launch.ctas = 1;
  launch.grid = checked_grid("sequences and splits", sequences * launch.ctas);
  take_workspace(p, launch, stored(), rows, memory);
  return launch;
}

FwdPlan::Launch many_rows_launch(FwdParams const& p, KernelKey key, Tiles const& tiles_of,
                                 SequenceRule const& rule, WorkspaceLayout& memory) {
  FwdTile const& tile = tiles_of.many;
  key.tile = tiles_of.many_kind;
  Lengths const q = queries_of(p);
  // Of packed queries over keys that have no pages, more go to the forward kernel: see kernel_of.
  int32_t const queries =
      q.known() || rule.split_only ? q.most : std::min(q.most, 4 * rule.unsplit_block_m);
  int64_t const rows = int64_t(queries) * rule.group;
  FA2_CHECK(rows <= kMaxPackedRows,
            "{} queries of {} heads per KV head are more rows than the split kernel counts",
            queries, rule.group);
  FwdPlan::Launch launch{.key = key, .tile = tile, .combine_queries = queries};
  launch.num_m_blocks = ceil_div(rows, tile.block_m);
  int32_t const tiles = visible_tiles(p, tile.block_m / rule.group + 2, tile.block_n);
  int64_t split_rows = rows, fewest_rows = rows;
  if (p.num_splits > 0) {
    launch.num_splits = std::max(1, std::min(p.num_splits, tiles));
  } else {
    if (!q.known()) {
      split_rows = std::min<int64_t>(rows, most_packed_rows(rule.group));
      // Fewer rows may be fewer blocks, each of which then has more splits.
      fewest_rows = std::min<int64_t>(split_rows, std::max(kFewRows + 1, rule.group));
      launch.combine_queries = std::max(1, int32_t(split_rows) / rule.group);
    }
    launch.num_splits = std::clamp(ceil_div(tiles, many_split_tiles(rule)), 1,
                                   most_many_splits(rule, int32_t(fewest_rows)));
  }
  int64_t const split_ctas = int64_t(ceil_div(split_rows, tile.block_m)) * launch.num_splits;
  int64_t const ctas = std::max<int64_t>(launch.num_m_blocks, split_ctas);
  launch.ctas = checked_grid("query tiles and splits", ctas);
  launch.grid = checked_grid("query tiles and splits", ctas * p.batch * p.num_heads_kv);
  take_workspace(p, launch, launch.num_splits, split_rows, memory);
  return launch;
}

std::string to_string(FwdPlan::Launch const& launch) {
  FwdTile const& t = launch.tile;
  if (launch.is_split()) {
    return message(
        "{}: tile {}x{}, warps {}x{}, {} row blocks, {} splits, {} CTAs a sequence, grid {}",
        to_string(launch.key), t.block_m, t.block_n, t.row_warps, t.key_warps, launch.num_m_blocks,
        launch.num_splits, launch.ctas, launch.grid);
  }
  return message("{}: tile {}x{}, warps {}x{}, {} query blocks, section {}, grid {}{}",
                 to_string(launch.key), t.block_m, t.block_n, t.row_warps, t.column_warps,
                 launch.num_m_blocks, launch.section, launch.grid, to_string(launch.listed));
}

// Whether keys hold the values, and are so wide that kernels are built to read them once. Caches of
// pages have split kernels alone; others of up to 512 columns may take the forward kernel.
bool reads_latents(FwdParams const& p, KernelKey const& key) {
  bool const wide =
      is_split_only(key.bucket) || (key.bucket == Bucket(512) && p.pages.block_table != nullptr);
  return keys_hold_values(p) && wide &&
         (key.variant == Variant::kPlain || key.variant == Variant::kModified);
}

// Kernels with no register for a second width (FwdConfig::kOneWidth) leave such heads to others.
KernelKey forward_key(FwdParams const& p, DeviceInfo const& device) {
  KernelKey key = kernel_key(p, device, has_small_tile);
  if (reads_latents(p, key)) {
    key.bucket = {576, 512};
    key.variant = Variant::kLatents;
  }
  if (is_split_only(key.bucket)) {
    if (key.variant == Variant::kPlain) key.variant = Variant::kModified;
    return key;
  }
  check_tile_fits(key, device);
  if (p.head_dim_v == p.head_dim || key.bucket == Bucket(512)) return key;
  if (key.variant == Variant::kListed && key.bucket == Bucket(128)) key.bucket = {192, 128};
  if (key.variant == Variant::kPlain && has_small_tile(key.bucket)) key.tile = TileKind::kSmall;
  return key;
}

}  // namespace

RowPieces FwdPlan::Launch::pieces(void* memory) const {
  char* const begin = static_cast<char*>(memory) + listed.slots;
  int64_t const rows = int64_t(listed.capacity) * listed.copies * tile.block_m;
  auto* const states = reinterpret_cast<RowState*>(begin);
  return {.out = reinterpret_cast<float*>(states + rows), .states = states};
}

Partials FwdPlan::Launch::partials(void* memory) const {
  char* const begin = static_cast<char*>(memory);
  return {.out = reinterpret_cast<float*>(begin + workspace.out),
          .states = reinterpret_cast<RowState*>(begin + workspace.states),
          .rows = workspace.rows,
          .sequence_rows = workspace.sequence_rows};
}

SplitSchedule FwdPlan::schedule(Launch const& launch) const {
  bool const large = launch.key.tile == TileKind::kManyRowsLarge;
  return {.rule = rule,
          .kind = large ? TileKind::kManyRows : launch.key.tile,
          .selects = selects(),
          .block_m = launch.tile.block_m,
          .block_n = launch.tile.block_n,
          .ctas = launch.ctas};
}

namespace {

// `by_others`: whether another family has kernels for the sequences that are not split.
FwdPlan plan_sequences(FwdParams const& p, DeviceInfo const& device, bool by_others) {
  FA2_CHECK(p.num_splits >= 0 && p.num_splits <= kMaxSplits,
            "num_splits must be from 0 to {}, got {}", kMaxSplits, p.num_splits);
  KernelKey const key = forward_key(p, device);
  FA2_CHECK(!has_dropout(key.variant) || (p.pages.block_table == nullptr && p.num_splits <= 1),
            "pages and splits do not go with dropout");
  bool const whole = !is_part(p) && p.partial_lse == nullptr;
  FA2_CHECK(whole || (p.pages.block_table == nullptr && p.num_splits <= 1),
            "pages and splits do not go with parts of sequences");
  FA2_CHECK(p.partial_lse == nullptr || !is_listed(key.variant),
            "a block mask is for all keys in one call, which leaves nothing to be merged");
  if (p.batch == 0 || p.num_heads == 0 || p.seqs_q.max_seqlen == 0) return {};
  Tiles const tiles(key, device);
  FwdPlan plan{.rule = sequence_rule(p, key, tiles, device)};
  if (by_others) leave_unsplit(plan.rule);
  FA2_CHECK(!(plan.rule.unsplit_only && is_split_only(key.bucket)),
            "heads of more than 512 columns go without dropout, block masks, biases and parts of "
            "sequences");
  Lengths const q = queries_of(p), k = keys_of(p);
  WorkspaceLayout memory;
  auto const add = [&](FwdPlan::Launch const& launch) { plan.all[plan.num_launches++] = launch; };
  if (may_run(plan.rule, key.tile, q, k)) {
    add(by_others ? FwdPlan::Launch{.key = key, .tile = tiles.unsplit}
                  : unsplit_launch(p, key, tiles.unsplit, device, memory));
  }
  if (may_run(plan.rule, TileKind::kManyRows, q, k)) {
    add(many_rows_launch(p, key, tiles, plan.rule, memory));
  }
  if (may_run(plan.rule, TileKind::kFewRows, q, k)) {
    add(few_rows_launch(p, key, tiles.few, plan.rule, device, memory));
  }
  plan.workspace_bytes = memory.bytes;
  return plan;
}

}  // namespace

FwdPlan plan_forward(FwdParams const& p, DeviceInfo const& device) {
  return plan_sequences(p, device, false);
}

FwdPlan plan_beside(FwdParams const& p, DeviceInfo const& device) {
  return plan_sequences(p, device, true);
}

bool leaves_sequences(FwdPlan const& plan) {
  return std::ranges::any_of(plan.launches(), is_of_others);
}

std::string to_string(FwdPlan const& plan) {
  std::string text;
  for (FwdPlan::Launch const& launch : plan.launches()) {
    if (is_of_others(launch)) continue;
    text += (text.empty() ? "" : "; ") + to_string(launch);
  }
  return plan.workspace_bytes == 0 ? text
                                   : message("{}, workspace {} bytes", text, plan.workspace_bytes);
}

}  // namespace fa2::sm80

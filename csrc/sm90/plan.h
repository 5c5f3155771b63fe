#pragma once

// How a problem will run: a pure function of the problem and the device, to be printed and tested.

#include <cstdint>
#include <optional>
#include <string>

#include "core/params.h"
#include "host/device.h"
#include "sm80/sequence_rule.h"
#include "sm90/backward/tiles.h"
#include "sm90/tiles.h"

namespace fa2::sm90 {

// Which kernel: the only axes that are fixed at compile time.
struct KernelKey {
  DType dtype;
  Bucket bucket;
  Variant variant;
  StepKind steps;

  bool operator==(KernelKey const&) const = default;
};

std::string to_string(KernelKey const& key);

struct FwdPlan {
  KernelKey key;
  FwdTile tile;
  int32_t pack = 1;           // query heads side by side in a tile
  int32_t num_m_blocks = 0;   // query blocks of the longest sequence
  int32_t section = 1;        // (sequence, pack) pairs that are scheduled together
  int32_t num_tiles = 0;      // of work
  int32_t grid = 0;           // CTAs; 0: nothing to do
  bool counts_tiles = false;  // CTAs take the next tile that is left, not each grid-th one
  int64_t workspace_bytes = 0;
  // Where a plan of sm80 stands beside this one: only sequences that its rule leaves unsplit are
  // computed.
  std::optional<sm80::SequenceRule> beside = {};

  int32_t queries() const { return tile.block_m / pack; }  // of a tile
};

// What no kernel of the family does of a problem, in words; null where there is one that runs it.
// That depends on heads, options, layout and entry point, never on the batch or on lengths.
char const* not_served(FwdParams const& params);

// Throws Error for what the family does not serve.
FwdPlan plan_forward(FwdParams const& params, DeviceInfo const& device);

std::string to_string(FwdPlan const& plan);

// Of the main backward kernels.
struct BwdKey {
  DType dtype;
  Bucket bucket;
  Variant variant;

  bool operator==(BwdKey const&) const = default;
};

std::string to_string(BwdKey const& key);

struct BwdPlan {
  // Byte offsets in BwdParams::workspace (see BwdWorkspace in sm80/backward/args.h).
  struct Workspace {
    int32_t tiles_per_head;
    int64_t row_stats;
    int64_t grad_q;
    int64_t semaphores;
    int64_t ticket;
    int64_t mask_by_row, mask_counts, mask_sums, mask_by_col, mask_entries;
  };

  BwdKey key;
  BwdTile tile;
  int32_t num_m_blocks;    // query tiles of the longest sequence
  int32_t num_n_blocks;    // key blocks of the longest sequence
  int32_t section;         // (sequence, KV head) pairs that are scheduled together
  int32_t grid;            // CTAs of the main kernel
  int32_t rows_grid;       // CTAs of the kernels that go over queries
  bool ordered;            // dQ is summed in a fixed order
  int32_t mask_rows_grid;  // CTAs of the kernels that derive lists of a block mask by keys
  int32_t mask_columns_grid;
  Workspace workspace;
  int64_t workspace_bytes;
};

// As of forward.
char const* not_served(BwdParams const& params);
BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device);

std::string to_string(BwdPlan const& plan);

}  // namespace fa2::sm90

#pragma once

// How a problem will run: a pure function of the problem and the device, to be printed and tested.

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "core/params.h"
#include "host/device.h"
#include "sm80/backward/tiles.h"
#include "sm80/bias_backward/pass.h"
#include "sm80/forward/pieces.h"
#include "sm80/sequence_rule.h"
#include "sm80/split/partials.h"
#include "sm80/tiles.h"

namespace fa2::sm80 {

// Which kernel: the only axes that are fixed at compile time.
struct KernelKey {
  DType dtype;
  Bucket bucket;
  Variant variant;
  TileKind tile;

  bool operator==(KernelKey const&) const = default;
};

std::string to_string(KernelKey const& key);

// How the CTAs of a launch under a block mask come, and what its pieces leave: see
// sm80/lists/schedule.h. Byte offsets in the workspace.
struct ListedPlan {
  int32_t units = 0;
  int32_t lists = 0;
  int32_t capacity = 0;
  int32_t copies = 0;
  int32_t section = 1;
  PieceOrder order = PieceOrder::kFirst;
  int32_t sum_grid = 0;  // CTAs of the kernel that adds up pieces; 0: no list can be cut
  int64_t items = 0;
  int64_t slots = 0;

  bool cuts() const { return sum_grid > 0; }
  ListedSchedule schedule(void* memory) const;
};

// Empty where no list can be cut.
std::string to_string(ListedPlan const& plan);

struct FwdPlan {
  // What the splits of a launch leave for the combine kernel: byte offsets in
  // FwdParams::workspace.
  struct Workspace {
    int64_t states = 0;
    int64_t out = 0;
    int64_t rows = 0;  // see Partials
    int32_t sequence_rows = 0;
  };

  // One kernel, and the sequences that are its own.
  struct Launch {
    KernelKey key;
    FwdTile tile;
    int32_t num_m_blocks = 0;  // row blocks of the longest sequence
    int32_t section = 0;       // (batch, head) pairs scheduled together: their K and V share the L2
                               // cache
    int32_t ctas = 0;          // split kernels: for each sequence and KV head
    int32_t num_splits = 1;    // most that a sequence has
    int32_t grid = 0;          // CTAs
    int32_t combine_queries = 0;  // most of a sequence, and
    int32_t combine_grid = 0;     // CTAs of the kernel that adds up splits; 0: nothing to add up
    Workspace workspace = {};
    ListedPlan listed = {};  // of a block mask

    bool is_split() const {  // through the split kernel
      return key.tile != TileKind::kRegular && key.tile != TileKind::kSmall;
    }
    Partials partials(void* memory) const;
    RowPieces pieces(void* memory) const;
  };

  SequenceRule rule;
  std::array<Launch, 3> all = {};
  int32_t num_launches = 0;
  int64_t workspace_bytes = 0;

  std::span<Launch const> launches() const { return {all.data(), size_t(num_launches)}; }
  bool selects() const { return num_launches > 1; }
  SplitSchedule schedule(Launch const& launch) const;
};

// Throws Error for what no kernel of the family can run.
FwdPlan plan_forward(FwdParams const& params, DeviceInfo const& device);

std::string to_string(FwdPlan const& plan);

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

  KernelKey key;
  BwdTile tile;
  int32_t num_m_blocks;    // query tiles of the longest sequence
  int32_t num_n_blocks;    // key blocks of the longest sequence
  int32_t section;         // (batch, KV head) pairs scheduled together: their Q, dO and dQ share L2
  int32_t grid;            // CTAs of the main kernel
  int32_t rows_grid;       // CTAs of the kernels that go over queries
  bool ordered;            // dQ is summed in a fixed order
  int32_t mask_rows_grid;  // CTAs of the kernels that derive lists of a block mask by keys
  int32_t mask_columns_grid;
  ListedPlan listed;  // of a block mask
  Workspace workspace;
  int64_t workspace_bytes;
};

// Throws Error for what no kernel of the family can run.
BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device);

std::string to_string(BwdPlan const& plan);

struct BiasBwdPlan {
  // Byte offsets in BiasBwdParams::workspace (see BiasBwdArgs).
  struct Workspace {
    int64_t row_lse = 0;
    int64_t row_minus_delta = 0;
    int64_t partials = 0;
  };

  // Of one bias; no CTAs where its gradient is not wanted.
  struct Launch {
    BiasPass pass = {};
    int32_t grid = 0;
    int32_t sum_grid = 0;  // CTAs of the kernel that adds up partial sums; 0: there are none
  };

  DType dtype;
  std::array<Launch, 2> launches = {};  // of bias and relative_bias
  int32_t rows_grid = 0;                // CTAs of the kernel that goes over queries
  Workspace workspace = {};
  int64_t workspace_bytes = 0;
};

// Throws Error for what no kernel of the family can run.
BiasBwdPlan plan_bias_backward(BiasBwdParams const& params, DeviceInfo const& device);

std::string to_string(BiasBwdPlan const& plan);

struct AppendPlan {
  int32_t rows;  // most that a sequence appends or rotates
  int32_t grid;  // CTAs; 0: nothing to do
};

// Throws Error for more rows than a launch holds.
AppendPlan plan_append(AppendParams const& params);

}  // namespace fa2::sm80

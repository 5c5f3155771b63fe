#pragma once

// How a problem will run: a pure function of the problem and the device, to be printed and tested.

#include <cstdint>
#include <string>

#include "core/params.h"
#include "host/device.h"
#include "sm80/bwd_tiles.h"
#include "sm80/tiles.h"

namespace fa2 {

// Which kernel: the only axes that are fixed at compile time.
struct KernelKey {
  DType dtype;
  int32_t bucket;  // head dim rounded up
  Variant variant;
  bool small;  // the tile for devices with less shared memory

  bool operator==(KernelKey const&) const = default;
};

std::string to_string(KernelKey const& key);

struct FwdPlan {
  KernelKey key;
  sm80::FwdTile tile;
  int32_t num_m_blocks;  // query blocks of the longest sequence
  int32_t section;       // (batch, head) pairs scheduled together: their K and V share the L2 cache
  int32_t grid;          // CTAs
};

// Throws Error for what no kernel of the family can run.
FwdPlan plan_forward(FwdParams const& params, DeviceInfo const& device);

std::string to_string(FwdPlan const& plan);

struct BwdPlan {
  // Byte offsets in BwdParams::workspace (see BwdWorkspace in sm80/bwd_args.h), and its size.
  struct Workspace {
    int32_t tiles_per_head;
    int64_t row_stats;
    int64_t grad_q;
    int64_t semaphores;
    int64_t ticket;
    int64_t bytes;
  };

  KernelKey key;
  sm80::BwdTile tile;
  int32_t num_m_blocks;  // query tiles of the longest sequence
  int32_t num_n_blocks;  // key blocks of the longest sequence
  int32_t section;       // (batch, KV head) pairs scheduled together: their Q, dO and dQ share L2
  int32_t grid;          // CTAs of the main kernel
  int32_t rows_grid;     // CTAs of the kernels that go over queries
  bool ordered;          // dQ is summed in a fixed order
  Workspace workspace;
};

// Throws Error for what no kernel of the family can run.
BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device);

std::string to_string(BwdPlan const& plan);

}  // namespace fa2

#pragma once

// How a problem will run: a pure function of the problem and the device, to be printed and tested.

#include <cstdint>
#include <string>

#include "core/params.h"
#include "host/device.h"
#include "sm80/tiles.h"

namespace fa2 {

// Which kernel: the only axes that are fixed at compile time.
struct FwdKey {
  DType dtype;
  int32_t bucket;  // head dim rounded up
  FwdVariant variant;
  bool small;  // the tile for devices with less shared memory

  bool operator==(FwdKey const&) const = default;
};

std::string to_string(FwdKey const& key);

struct FwdPlan {
  FwdKey key;
  sm80::FwdTile tile;
  int32_t num_m_blocks;  // query blocks of the longest sequence
  int32_t section;       // (batch, head) pairs scheduled together: their K and V share the L2 cache
  int32_t grid;          // CTAs
};

// Throws Error for what no kernel of the family can run.
FwdPlan plan_forward(FwdParams const& params, DeviceInfo const& device);

std::string to_string(FwdPlan const& plan);

}  // namespace fa2

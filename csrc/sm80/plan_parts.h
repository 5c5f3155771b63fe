#pragma once

// What the plans of both directions, and their launches, are made of.

#include <cstdint>

#include "core/score_mod.h"
#include "sm80/plan.h"

namespace fa2::sm80 {

// The problem as kernels take it. They multiply masked scores, -inf, so a scale of 0 is for the
// softcap to apply: it comes before the mask, and any does.
inline FwdParams runnable(FwdParams params) {
  if (params.softmax_scale == 0 && params.score_mod.softcap == 0) params.score_mod.softcap = 1;
  return params;
}

// Kernels with a block mask learn from these whether scores are modified: `plain` is what makes
// powers of two of scores, as they are after that.
inline ScoreScales kernel_scales(FwdParams const& p) {
  ScoreScales scales = score_scales<float>(p.softmax_scale, p.score_mod.softcap);
  if (p.block_mask.row_offsets != nullptr && is_modified(p.score_mod)) scales.plain = kLog2e;
  return scales;
}

// Of the narrowest bucket that holds the problem's heads. `has_small_tile` says which kernels have
// a tile for less shared memory.
KernelKey kernel_key(FwdParams const& p, DeviceInfo const& device,
                     bool (*has_small_tile)(Bucket, Variant));

// Throws Error where the device lacks the shared memory of a kernel that has no smaller tile.
void check_tile_fits(KernelKey const& key, DeviceInfo const& device);

// Pairs of (batch, head) to schedule together: as many as have what their CTAs share in half of the
// L2 cache, and at least one. `bytes` is what one of them takes.
int32_t section_size(int64_t pairs, int64_t bytes, DeviceInfo const& device);

// Tiles of block_m queries of a head, as BwdWorkspace::first_tile counts them.
int64_t query_tiles_per_head(FwdParams const& p, int32_t block_m);

// Throws Error when a launch cannot hold so many CTAs, which stand for `what`.
int32_t checked_grid(char const* what, int64_t grid);

// Throw Error where a plan cannot be run as it is: with less memory, or on this device.
void check_workspace(Workspace const& workspace, int64_t bytes);
void check_smem(KernelKey const& key, int32_t bytes, DeviceInfo const& device);

// Hands out parts of a workspace, from its beginning.
struct WorkspaceLayout {
  int64_t bytes = 0;

  int64_t take(int64_t size) {
    constexpr int64_t kAlignment = 256;
    int64_t const offset = bytes;
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
};

}  // namespace fa2::sm80

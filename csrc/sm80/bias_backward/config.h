#pragma once

// Shared memory of a CTA, and the sizes that follow from its tile. The head dim is gone through in
// chunks, so that one kernel serves all of them.

#include "sm80/bias_backward/work_tile.h"
#include "tile/copy.h"
#include "tile/fragments.h"
#include "tile/smem_tile.h"

namespace fa2::sm80 {

template <class Element_>
struct BiasBwdConfig {
  using Element = Element_;
  static constexpr int kBlock = BiasPass::kBlock;
  static constexpr int kChunk = 64;  // columns of the head dim
  static constexpr int kWarps = kBlock / 16;
  static constexpr int kThreads = 32 * kWarps;
  static_assert(kBlock == BlockMask::kBlock, "a tile has one list entry");

  // A warp has 16 queries and all keys: blocks of these (8), and of a chunk (16).
  static constexpr int kM = 1;
  static constexpr int kN = kBlock / 8;
  static constexpr int kDepth = kChunk / 16;

  using Copies = CopyShape<kBlock, kChunk, kThreads>;
  using SmemRows = SmemTile<kBlock, kChunk, Copies::kSmemPad>;

  // A chunk of rows: Q and K, or dO and V.
  struct Stage {
    alignas(128) Element queries[SmemRows::kElements];
    alignas(128) Element keys[SmemRows::kElements];
  };

  struct Smem {
    union {
      Stage stages[2];
      float sums[kBlock][kBlock + 1];  // once all tiles have been seen
    };
    BiasSteps steps;
  };
};

}  // namespace fa2::sm80

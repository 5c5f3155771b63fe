#pragma once

// Rings of buffers in shared memory, which one thread fills for consumer warps.

#include "tile/hopper.h"
#include "tile/intrinsics.h"

namespace fa2 {

// The mbarriers of a ring: phase i of a stage is complete when its buffer is full, or empty, for
// the i-th time.
template <int kStages_>
struct Ring {
  static constexpr int kStages = kStages_;
  uint64_t full[kStages];
  uint64_t empty[kStages];

  CUTE_DEVICE void init(int consumer_warps) {
    CUTE_UNROLL
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full[i], 1);
      mbarrier_init(empty[i], consumer_warps);
    }
  }
};

// Where a thread stands. The one that fills and those that empty step through a ring on their own.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  CUTE_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <class Ring>
CUTE_DEVICE void wait_full(Ring& ring, RingPosition<Ring::kStages> const& at) {
  mbarrier_wait(ring.full[at.stage], at.parity);
}
// At first buffers are empty.
template <class Ring>
CUTE_DEVICE void wait_empty(Ring& ring, RingPosition<Ring::kStages> const& at) {
  mbarrier_wait(ring.empty[at.stage], at.parity ^ 1);
}
// By each consumer warp: what its lanes have read of the buffer, they have read.
template <class Ring>
CUTE_DEVICE void release(Ring& ring, int stage) {
  __syncwarp();
  if (lane_index() == 0) mbarrier_arrive(ring.empty[stage]);
}

}  // namespace fa2

#pragma once

// The emulator's version of csrc/tile/intrinsics.h: same names, same meaning, no PTX.

#include <cmath>

#include "emu/device.h"

namespace fa2 {

inline float exp2_approx(float x) {
  float const y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;  // .ftz; NaN stays
}

inline float tanh_approx(float x) { return std::tanh(x); }

template <int kPending>
void cp_async_wait_group() {
  emu::copy_async_wait_group(kPending);
}

inline void named_barrier_sync(int id, int threads) { emu::barrier_sync(id, threads); }

inline bool barrier_or(bool predicate) {
  return emu::barrier_sync(0, emu::kWholeCta, predicate, emu::Reduction::kOr) != 0;
}

template <class T>
void opaque(T&) {}

inline int thread_index() { return int(threadIdx.x); }
inline int lane_index() { return thread_index() & 31; }
inline int warp_index() { return thread_index() >> 5; }

}  // namespace fa2

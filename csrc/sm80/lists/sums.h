#pragma once

// Sums of numbers that the threads of a CTA have.

#include <cute/config.hpp>

#include <cstdint>

namespace fa2::sm80 {

struct PairOfSums {
  int64_t first;
  int64_t second;
};

// Over all threads, which all get them. `warp_sums` is shared memory, one for each warp.
template <int kThreads>
CUTE_DEVICE PairOfSums cta_sums(PairOfSums own, PairOfSums (&warp_sums)[kThreads / 32]) {
  for (int distance = 16; distance > 0; distance /= 2) {
    own.first += __shfl_xor_sync(0xffffffffu, own.first, distance);
    own.second += __shfl_xor_sync(0xffffffffu, own.second, distance);
  }
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = own;
  __syncthreads();
  PairOfSums sums{0, 0};
  for (PairOfSums const& warp : warp_sums) {
    sums.first += warp.first;
    sums.second += warp.second;
  }
  return sums;
}

}  // namespace fa2::sm80

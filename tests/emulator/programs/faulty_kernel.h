#pragma once

// A small kernel with everything that an attention kernel needs, each part of which can be broken
// on purpose. For rows of A (m x 64) and B (n x 64):
//
//   S = A B',  row_sums = sum of S over its columns,  out = S B,
//
// over split ranges of B: CTA (x, y) adds its part for 32 rows of A to global memory. The CTAs of
// one row block take turns in the order in which they have drawn a ticket; the last one converts
// the result. With elements in {-1, 0, 1} all numbers are small integers, hence exact.

#include <cuda_fp16.h>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "device_functions.h"

namespace faulty {

enum class Fault {
  kNone,
  // cp.async
  kNoBarrierAfterLoad,
  kNoBarrierBeforeReuse,
  kWaitForOneLess,
  kNoWait,
  kNoCommit,
  kNoRowPredicateA,
  kNoRowPredicateB,
  kNotLoaded,
  kMisalignedCopyTarget,
  kMisalignedCopySource,
  kCopyTargetOutside,
  // ldmatrix, mma
  kNoSwizzleOnStore,
  kMisalignedLdmatrix,
  kLdmatrixOutside,
  kDivergentMma,
  // warps
  kNoSyncWarp,
  kShuffleByHalfAWarp,
  kShuffleFromOutsideMask,
  kShuffleMasksDiffer,
  // barriers
  kNoPairBarrier,
  kPairBarrierForAll,
  kPairBarrierShared,
  kPairBarrierBadCount,
  kPairBarrierBadId,
  kDivergentBarrier,
  kNoTicketBarrier,
  kNoStagingBarrier,
  // global memory
  kNoRowPredicateOut,
  kWritesInput,
  kMisalignedVectorStore,
  kStoreTwice,
  kSharedOutside,
  // between CTAs
  kNoAtomic,
  kNoTurn,
  kNoFenceBeforeRelease,
  kNoFenceAfterAcquire,
  kNoBarrierAfterAcquire,
  kNoBarrierBeforeRelease,
  kNoRelease,
};

struct Params {
  __half const* a;  // (m, 64)
  __half const* b;  // (n, 64)
  float* sums;      // (m, 64), zero; added to by all splits
  float* row_sums;  // (m,), zero
  int* tickets;     // (ceil(m / 32),), zero
  int* turns;       // (ceil(m / 32),), zero
  __half* out;      // (m, 64)
  int m, n;
  int tiles_per_split;  // of 32 rows of B
  Fault fault;
};

inline constexpr int kDepth = 64;
inline constexpr int kTile = 32;  // rows of A of a CTA, and of B of a step
inline constexpr int kThreads = 128;
inline constexpr int kStages = 2;

struct Smem {
  alignas(128) __half a[kTile * kDepth];
  alignas(128) __half b[kStages][kTile * kDepth];
  alignas(128) __half s[2][16 * kTile];  // of each pair of warps
  alignas(128) __half out[kTile * kDepth];
  float row_part[4][16];
  float row_sum[4][16];
  int ticket;
};

// Warps 2i and 2i + 1 form pair i, which owns rows 16i to 16i + 15 of the CTA. Of S, a warp
// computes 16 columns; of the result, 32.
class Kernel {
 public:
  __device__ Kernel(Params const& params, Smem& smem)
      : p(params),
        smem(smem),
        thread(int(threadIdx.x)),
        lane(thread % 32),
        warp(thread / 32),
        pair(warp / 2),
        half(warp % 2),
        first_row(int(blockIdx.x) * kTile) {}

  __device__ void run() {
    draw_ticket();
    multiply();
    accumulate();
    if (ticket == int(gridDim.y) - 1) convert();
  }

 private:
  __device__ bool is(Fault fault) const { return p.fault == fault; }
  __device__ void barrier_unless(Fault fault) const {
    if (!is(fault)) __syncthreads();
  }

  // Where 16-byte chunk `chunk` of a row of 64 lies.
  __device__ static int swizzled(int row, int chunk) {
    return row * kDepth + (chunk ^ row % 8) * 8;
  }
  __device__ static int swizzled_s(int row, int chunk) {
    return row * kTile + (chunk ^ row / 2 % 4) * 8;
  }

  __device__ void draw_ticket() {
    if (thread == 0) smem.ticket = atomicAdd(&p.tickets[blockIdx.x], 1);
    barrier_unless(Fault::kNoTicketBarrier);
    ticket = smem.ticket;
  }

  // 32 rows of `source`; those from `rows` on become zero.
  __device__ void load(__half const* source, __half* target, int rows, Fault ignores_rows) {
    using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
    for (int i = thread; i < kTile * kDepth / 8; i += kThreads) {
      int const row = i / 8, chunk = i % 8;
      __half const* from = source + row * kDepth + chunk * 8;
      __half* to =
          target + (is(Fault::kNoSwizzleOnStore) ? row * kDepth + chunk * 8 : swizzled(row, chunk));
      if (is(Fault::kMisalignedCopyTarget)) to += 4;
      if (is(Fault::kMisalignedCopySource)) from += 4;
      if (is(Fault::kCopyTargetOutside) && i == 0) to += sizeof(Smem) / 2;
      Copy::copy(*reinterpret_cast<cute::uint128_t const*>(from),
                 *reinterpret_cast<cute::uint128_t*>(to), row < rows || is(ignores_rows));
    }
  }

  __device__ void load_b(int tile, int end) {
    if (tile < end && !is(Fault::kNotLoaded)) {
      load(p.b + tile * kTile * kDepth, smem.b[tile % kStages], p.n - tile * kTile,
           Fault::kNoRowPredicateB);
    }
    if (!is(Fault::kNoCommit)) cute::cp_async_fence();
  }

  __device__ void multiply() {
    int const begin = int(blockIdx.y) * p.tiles_per_split;
    int const end = min(begin + p.tiles_per_split, (p.n + kTile - 1) / kTile);
    load(p.a + first_row * kDepth, smem.a, p.m - first_row, Fault::kNoRowPredicateA);
    load_b(begin, end);
    for (int tile = begin; tile < end; ++tile) {
      load_b(tile + 1, end);
      if (is(Fault::kWaitForOneLess)) {
        selftest::cp_async_wait_group<2>();
      } else if (!is(Fault::kNoWait)) {
        selftest::cp_async_wait_group<1>();
      }
      barrier_unless(Fault::kNoBarrierAfterLoad);
      multiply_tile(smem.b[tile % kStages]);
      barrier_unless(Fault::kNoBarrierBeforeReuse);
    }
    sum_rows();
  }

  __device__ void multiply_tile(__half* b) {
    // S = A B'
    float s[2][4] = {};
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t fragment_a[4], fragment_b[4];
      load_fragment(fragment_a, smem.a + swizzled(pair * 16 + lane % 16, 2 * k + lane / 16));
      int const row = half * 16 + lane % 8 + lane / 16 * 8;
      load_fragment(fragment_b, b + swizzled(row, 2 * k + lane / 8 % 2));
      mma(s[0], fragment_a, fragment_b[0], fragment_b[1]);
      mma(s[1], fragment_a, fragment_b[2], fragment_b[3]);
    }
    for (int j = 0; j < 2; ++j) {
      row_sum[0] += s[j][0] + s[j][1];
      row_sum[1] += s[j][2] + s[j][3];
    }
    exchange(s);
    // out += S B
    for (int k = 0; k < kTile / 16; ++k) {
      uint32_t fragment_s[4], fragment_b[4];
      load_fragment(fragment_s, smem.s[pair] + swizzled_s(lane % 16, 2 * k + lane / 16));
      for (int n = 0; n < 2; ++n) {
        int const chunk = half * 4 + n * 2 + lane / 16;
        load_transposed(fragment_b, b + swizzled(k * 16 + lane % 16, chunk));
        mma(sum[2 * n], fragment_s, fragment_b[0], fragment_b[1]);
        mma(sum[2 * n + 1], fragment_s, fragment_b[2], fragment_b[3]);
      }
    }
  }

  // Puts S of both warps of the pair into shared memory.
  __device__ void exchange(float const (&s)[2][4]) {
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < 2; ++i) {
        int const row = lane / 4 + 8 * i;
        __half* const to = smem.s[pair] + swizzled_s(row, half * 2 + j) + lane % 4 * 2;
        *reinterpret_cast<__half2*>(to) = __floats2half2_rn(s[j][2 * i], s[j][2 * i + 1]);
      }
    }
    if (!is(Fault::kNoPairBarrier)) pair_barrier();
  }

  __device__ void pair_barrier() {
    int id = 1 + pair, threads = 64;
    if (is(Fault::kPairBarrierForAll) && pair == 0) threads = 128;
    if (is(Fault::kPairBarrierShared)) id = 1;
    if (is(Fault::kPairBarrierBadCount)) threads = 40;
    if (is(Fault::kPairBarrierBadId)) id += 16;
    selftest::named_barrier_sync(id, threads);
  }

  // Sums over the four lanes of a row, by shuffles; then hands them to lanes 0 to 15.
  __device__ void sum_rows() {
    if (is(Fault::kShuffleByHalfAWarp) && lane >= 16) return;
    for (int i = 0; i < 2; ++i) {
      row_sum[i] += __shfl_xor_sync(0xffffffffu, row_sum[i], 1);
      row_sum[i] += __shfl_xor_sync(0xffffffffu, row_sum[i], 2);
      if (lane % 4 == 0) smem.row_part[warp][lane / 4 + 8 * i] = row_sum[i];
    }
    if (is(Fault::kShuffleFromOutsideMask) && lane < 16) __shfl_sync(0x0000ffffu, lane, 20);
    if (is(Fault::kShuffleMasksDiffer)) __shfl_sync(lane < 16 ? 0xffffffffu : 0xffff0000u, 0, 16);
    if (!is(Fault::kNoSyncWarp)) __syncwarp();
    if (lane < 16) smem.row_sum[warp][lane] = smem.row_part[warp][lane];
    if (is(Fault::kDivergentBarrier) && lane == 7) return;
    __syncthreads();
  }

  __device__ void accumulate() {
    if (is(Fault::kNoAtomic)) add_sums();  // and out of turn
    if (thread == 0) {
      int volatile* const turn = &p.turns[blockIdx.x];
      while (!is(Fault::kNoTurn) && *turn != ticket) continue;
      if (!is(Fault::kNoFenceAfterAcquire)) __threadfence();
    }
    barrier_unless(Fault::kNoBarrierAfterAcquire);
    if (!is(Fault::kNoAtomic)) add_sums();
    int const row = first_row + thread;
    if (thread < kTile && row < p.m) {
      int const of_pair = thread / 16 * 2, in_warp = thread % 16;
      p.row_sums[row] += smem.row_sum[of_pair][in_warp] + smem.row_sum[of_pair + 1][in_warp];
    }
    barrier_unless(Fault::kNoBarrierBeforeRelease);
    if (thread == 0 && !is(Fault::kNoRelease)) {
      if (!is(Fault::kNoFenceBeforeRelease)) __threadfence();
      atomicExch(&p.turns[blockIdx.x], ticket + 1);
    }
    __syncthreads();
  }

  __device__ void add_sums() {
    for (int n = 0; n < 4; ++n) {
      for (int i = 0; i < 4; ++i) {
        int const row = first_row + pair * 16 + lane / 4 + i / 2 * 8;
        int const col = half * 32 + n * 8 + lane % 4 * 2 + i % 2;
        if (row >= p.m) continue;
        float* const to = &p.sums[row * kDepth + col];
        if (is(Fault::kNoAtomic)) {
          *to += sum[n][i];
        } else {
          atomicAdd(to, sum[n][i]);
        }
      }
    }
  }

  // The last CTA of a row block: float to half through shared memory, out in 16-byte chunks.
  __device__ void convert() {
    int const rows = min(kTile, p.m - first_row);
    for (int i = thread; i < rows * kDepth; i += kThreads) {
      int const row = i / kDepth, col = i % kDepth;
      smem.out[swizzled(row, col / 8) + col % 8] =
          __float2half_rn(p.sums[(first_row + row) * kDepth + col]);
    }
    if (is(Fault::kSharedOutside)) smem.row_part[warp][lane + 256] = 1.f;
    barrier_unless(Fault::kNoStagingBarrier);
    for (int i = thread; i < kTile * kDepth / 8; i += kThreads) {
      int const row = i / 8, chunk = i % 8;
      if (row >= rows && !is(Fault::kNoRowPredicateOut)) continue;
      __half* to = p.out + (first_row + row) * kDepth + chunk * 8;
      if (is(Fault::kMisalignedVectorStore) && i == 0) to += 4;
      cute::UniversalCopy<cute::uint128_t>::copy(
          *reinterpret_cast<cute::uint128_t const*>(smem.out + swizzled(row, chunk)),
          *reinterpret_cast<cute::uint128_t*>(to));
    }
    if (is(Fault::kStoreTwice) && thread == 40) p.out[first_row * kDepth] = __half(0.f);
    if (is(Fault::kWritesInput)) const_cast<__half*>(p.a)[thread] = __half(0.f);
  }

  __device__ void load_fragment(uint32_t (&r)[4], __half* row) {
    if (is(Fault::kMisalignedLdmatrix)) row += 2;
    if (is(Fault::kLdmatrixOutside)) row += sizeof(Smem) / 2;
    cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<cute::uint128_t const*>(row), r[0], r[1], r[2],
                                  r[3]);
  }
  __device__ static void load_transposed(uint32_t (&r)[4], __half const* row) {
    cute::SM75_U16x8_LDSM_T::copy(*reinterpret_cast<cute::uint128_t const*>(row), r[0], r[1], r[2],
                                  r[3]);
  }
  __device__ void mma(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) const {
    if (is(Fault::kDivergentMma) && lane == 3) return;
    cute::SM80_16x8x16_F32F16F16F32_TN::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1,
                                            c[0], c[1], c[2], c[3]);
  }

  Params const& p;
  Smem& smem;
  int const thread, lane, warp, pair, half, first_row;
  int ticket;
  float row_sum[2] = {};  // rows lane / 4 and lane / 4 + 8
  float sum[4][4] = {};
};

static __global__ void kernel(Params params) {
  extern __shared__ __align__(128) char smem[];
  Kernel(params, *reinterpret_cast<Smem*>(smem)).run();
}

}  // namespace faulty

#pragma once

// A pipeline as kernels for sm_90 have it, each part of which can be broken on purpose: a warp
// loads tiles by bulk copies, two groups of four warps compute, and bulk copies store the results.

#include "bulk_functions.h"
#include "device_functions.h"

namespace pipeline {

enum class Fault {
  kNone,
  // the phases of a stage
  kNoWaitForTile,
  kWrongParityForTile,
  kNoWaitForStage,
  kRelaxedArrival,
  kRelaxedWait,
  kOneArrivalMore,
  kOneArrivalLess,
  // bytes
  kNothingExpected,
  kHalfExpected,
  kTooFewExpected,
  kTooManyExpected,
  kBytesNotOfUnits,
  kMisalignedTarget,
  kMisalignedSource,
  kBeyondSource,
  kBeyondSharedMemory,
  kNotLoaded,
  // mbarriers
  kNoInit,
  kInitTwice,
  kNoFenceAfterInit,
  kNoBarrierAfterInit,
  kMisalignedMbarrier,
  kPlainAccess,
  kUsedAfterInval,
  // the way out
  kNoFenceBeforeStore,
  kNoBarrierBeforeStore,
  kNoWaitForReading,
  kNoCommit,
  kNoWaitAtEnd,
  kReadsResultTooEarly,
  // warps
  kEveryLaneLoads,
  kKeepsRegisters,
  kDivergentRegisters,
  kMoreIsLess,
};

inline constexpr int kStages = 2;
inline constexpr int kGroup = 128;  // threads
inline constexpr int kThreads = 3 * kGroup;
inline constexpr int kConsumers = 2 * kGroup;
inline constexpr int kTile = 2 * kConsumers;  // floats
inline constexpr int kTileBytes = kTile * int(sizeof(float));

struct Params {
  float const* in;  // (tiles, kTile)
  float* out;       // (tiles, kTile): 2 x + tile
  float* last;  // (CTAs,): of the last tile's results, the first, as the CTA's last thread sees it
  int tiles;
  Fault fault;
};

struct Smem {
  alignas(128) float in[kStages][kTile];
  alignas(128) float out[kTile];
  uint64_t loaded[kStages];
  uint64_t free[kStages];
};

class Kernel {
 public:
  __device__ Kernel(Params const& params, Smem& smem)
      : p(params), smem(smem), thread(int(threadIdx.x)), warp(thread / 32) {}

  __device__ void run() {
    make_mbarriers();
    if (thread < kGroup) {
      if (!is(Fault::kKeepsRegisters)) fewer();
      if (warp == 0) produce();
    } else {
      if (is(Fault::kMoreIsLess)) {
        selftest::more_registers<160>();
      } else {
        selftest::more_registers<240>();
      }
      consume();
    }
    end();
  }

 private:
  __device__ bool is(Fault fault) const { return p.fault == fault; }

  __device__ void make_mbarriers() {
    if (thread == 0 && !is(Fault::kNoInit)) {
      int const more = is(Fault::kOneArrivalLess) ? 1 : 0;
      for (int s = 0; s < kStages; ++s) {
        selftest::mbarrier_init(&smem.loaded[s], 1);
        selftest::mbarrier_init(&smem.free[s], kConsumers + more);
      }
      if (is(Fault::kInitTwice)) selftest::mbarrier_init(&smem.loaded[1], 1);
      if (!is(Fault::kNoFenceAfterInit)) selftest::fence_mbarrier_init();
    }
    if (is(Fault::kNoBarrierAfterInit)) return;
    __syncthreads();
  }

  __device__ void fewer() {
    if (is(Fault::kDivergentRegisters) && thread % 32 == 5) {
      selftest::fewer_registers<32>();
    } else {
      selftest::fewer_registers<24>();
    }
  }

  __device__ void produce() {
    if (!selftest::elect_one() && !is(Fault::kEveryLaneLoads)) return;
    int step = 0;
    for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x), ++step) {
      int const stage = step % kStages;
      if (step >= kStages && !is(Fault::kNoWaitForStage)) {
        selftest::mbarrier_wait(&smem.free[stage], step / kStages % 2 ^ 1);
      }
      load(tile, stage);
    }
  }

  // In two halves.
  __device__ void load(int tile, int stage) {
    if (is(Fault::kNotLoaded) && tile == p.tiles - 1) return;
    uint64_t* mbarrier = &smem.loaded[stage];
    if (is(Fault::kMisalignedMbarrier)) {
      mbarrier = reinterpret_cast<uint64_t*>(reinterpret_cast<uint32_t*>(mbarrier) + 1);
    }
    if (is(Fault::kNothingExpected)) {
      selftest::mbarrier_arrive(mbarrier);
    } else {
      selftest::mbarrier_arrive_expect_tx(mbarrier, expected());
    }
    float const* from = p.in + tile * kTile + (is(Fault::kMisalignedSource) ? 2 : 0);
    float* to = smem.in[stage] + (is(Fault::kMisalignedTarget) ? 2 : 0);
    if (is(Fault::kBeyondSource)) from += kTile;
    if (is(Fault::kBeyondSharedMemory)) to += sizeof(Smem) / sizeof(float) / 4 * 4;
    int const bytes = kTileBytes / 2 - (is(Fault::kBytesNotOfUnits) ? 8 : 0);
    selftest::bulk_load(to, from, bytes, mbarrier);
    selftest::bulk_load(to + kTile / 2, from + kTile / 2, bytes, mbarrier);
  }

  __device__ int expected() const {
    if (is(Fault::kHalfExpected)) return kTileBytes / 2;
    if (is(Fault::kTooFewExpected)) return kTileBytes - 32;
    if (is(Fault::kTooManyExpected)) return kTileBytes + 32;
    return kTileBytes;
  }

  __device__ void consume() {
    int const first = thread - kGroup;
    int step = 0;
    for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x), ++step) {
      int const stage = step % kStages;
      wait_for_tile(stage, uint32_t(step / kStages % 2));
      float values[2];
      for (int i = 0; i < 2; ++i) {
        values[i] = 2.f * smem.in[stage][first + i * kConsumers] + float(tile);
      }
      release(stage);
      wait_for_reading();
      for (int i = 0; i < 2; ++i) smem.out[first + i * kConsumers] = values[i];
      store(tile);
    }
    if (is_storing()) {
      if (!is(Fault::kNoWaitAtEnd)) selftest::bulk_store_wait<0>();
    }
  }

  __device__ void wait_for_tile(int stage, uint32_t parity) {
    if (is(Fault::kNoWaitForTile)) return;
    if (is(Fault::kWrongParityForTile)) parity ^= 1;
    if (is(Fault::kRelaxedWait)) {
      selftest::mbarrier_wait_relaxed(&smem.loaded[stage], parity);
    } else {
      selftest::mbarrier_wait(&smem.loaded[stage], parity);
    }
  }

  __device__ void release(int stage) {
    if (is(Fault::kRelaxedArrival)) {
      selftest::mbarrier_arrive_relaxed(&smem.free[stage]);
    } else {
      selftest::mbarrier_arrive(&smem.free[stage]);
    }
    if (is(Fault::kOneArrivalMore) && thread == kGroup) {
      selftest::mbarrier_arrive(&smem.free[stage]);
    }
    if (is(Fault::kPlainAccess) && thread == kGroup) smem.free[stage] = 0;
  }

  __device__ bool is_storing() const { return thread == kGroup; }

  __device__ void wait_for_reading() {
    if (is_storing() && !is(Fault::kNoWaitForReading)) selftest::bulk_store_wait_read<0>();
    selftest::named_barrier_sync(1, kConsumers);
  }

  __device__ void store(int tile) {
    if (!is(Fault::kNoFenceBeforeStore)) selftest::fence_proxy_async();
    if (!is(Fault::kNoBarrierBeforeStore)) selftest::named_barrier_sync(1, kConsumers);
    if (!is_storing()) return;
    selftest::bulk_store(p.out + tile * kTile, smem.out, kTileBytes);
    if (!is(Fault::kNoCommit)) selftest::bulk_store_commit();
    if (is(Fault::kReadsResultTooEarly)) selftest::bulk_store_wait_read<0>();
  }

  __device__ void end() {
    if (!is(Fault::kReadsResultTooEarly)) __syncthreads();
    if (thread == 0) {
      for (int s = 0; s < kStages; ++s) {
        if (!is(Fault::kReadsResultTooEarly)) selftest::mbarrier_inval(&smem.loaded[s]);
      }
      if (is(Fault::kUsedAfterInval)) selftest::mbarrier_arrive(&smem.loaded[0]);
    }
    int const last_tile = (p.tiles - 1 - int(blockIdx.x)) / int(gridDim.x) * int(gridDim.x);
    if (thread == kThreads - 1) {
      p.last[blockIdx.x] = p.out[(int(blockIdx.x) + last_tile) * kTile];
    }
  }

  Params const& p;
  Smem& smem;
  int const thread, warp;
};

static __global__ void __launch_bounds__(kThreads, 1) kernel(Params const params) {
  extern __shared__ __align__(128) char smem[];
  Kernel(params, *reinterpret_cast<Smem*>(smem)).run();
}

}  // namespace pipeline

// A pipeline as kernels for sm_90 have it: a warp loads tiles by bulk copies, two groups of four
// warps compute, and bulk copies store the results. It passes under all schedules; each part of it,
// removed or broken, is reported for the right reason.

#include <vector>

#include "arrays.h"
#include "bulk_functions.h"
#include "device_functions.h"
#include "launch.h"

namespace {

using selftest::Array;

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

constexpr int kStages = 2;
constexpr int kGroup = 128;  // threads
constexpr int kThreads = 3 * kGroup;
constexpr int kConsumers = 2 * kGroup;
constexpr int kTile = 2 * kConsumers;  // floats
constexpr int kTileBytes = kTile * int(sizeof(float));

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

__global__ void __launch_bounds__(kThreads, 1) pipeline(Params const params) {
  extern __shared__ __align__(128) char smem[];
  Kernel(params, *reinterpret_cast<Smem*>(smem)).run();
}

// One launch; "" where it passes.
std::string run(Fault fault) {
  constexpr int kTiles = 11, kCtas = 2;
  Array<float> in(kTiles * kTile), out(kTiles * kTile), last(kCtas);
  for (int i = 0; i < in.size(); ++i) in[i] = float(i % 1000);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out"), last.writable("last")};
  Params const params{in.data(), out.data(), last.data(), kTiles, fault};
  std::string const report = selftest::launch(kCtas, kThreads, sizeof(Smem), pipeline, params);
  if (!report.empty()) return report;
  for (int i = 0; i < out.size(); ++i) {
    if (out[i] != 2.f * in[i] + float(i / kTile)) return "wrong result";
  }
  for (int c = 0; c < kCtas; ++c) {
    if (last[c] != out[(kTiles - 1 - (kTiles - 1 - c) % kCtas) * kTile]) return "wrong last";
  }
  return "";
}

// Two warps hand numbers to each other, in phases that they know by their state; then the second
// one is not expected any more, and the first one loads.
__global__ void hand_over_by_state(float const* in, float* out) {
  __shared__ alignas(16) float loaded[64];
  __shared__ int numbers[64];
  __shared__ uint64_t mbarrier;
  int const thread = int(threadIdx.x);
  if (thread == 0) {
    selftest::mbarrier_init(&mbarrier, 64);
    selftest::fence_proxy_async();
  }
  __syncthreads();
  numbers[thread] = thread;
  uint64_t const first = selftest::mbarrier_arrive(&mbarrier);
  while (!selftest::mbarrier_test_wait(&mbarrier, first)) continue;
  int const number = numbers[63 - thread];
  if (thread >= 32) {
    selftest::mbarrier_arrive_drop(&mbarrier);
    out[thread] = float(number);
    return;
  }
  uint64_t const second = selftest::mbarrier_arrive(&mbarrier);
  while (!selftest::mbarrier_test_wait(&mbarrier, second)) continue;
  if (thread == 0) {
    selftest::mbarrier_expect_tx(&mbarrier, sizeof(loaded));
    selftest::bulk_load(loaded, in, sizeof(loaded), &mbarrier);
  }
  __syncwarp();
  uint64_t const third = selftest::mbarrier_arrive(&mbarrier);
  while (!selftest::mbarrier_test_wait(&mbarrier, third)) continue;
  out[thread] = float(number) + loaded[2 * thread];
}

struct Case {
  Fault fault;
  char const* name;
  char const* report;  // part of it
};

constexpr char kRace[] = "race in shared memory";
constexpr char kSharedMemory[] = "shared memory + ";  // a race there, or a report of the mbarrier
constexpr char kMisaligned[] = "is not 16-byte aligned";

#define FAULT(name, report) {Fault::name, #name, report}
constexpr Case kCases[] = {
    FAULT(kNoWaitForTile, kRace),
    FAULT(kWrongParityForTile, kSharedMemory),
    FAULT(kNoWaitForStage, kSharedMemory),
    FAULT(kRelaxedArrival, kRace),
    FAULT(kRelaxedWait, "read without a wait for phase 0 of the mbarrier"),
    FAULT(kOneArrivalMore, kRace),
    FAULT(kOneArrivalLess, "1 of 257 arrivals and 0 bytes are missing"),
    FAULT(kNothingExpected, kRace),
    FAULT(kHalfExpected, kRace),
    FAULT(kTooFewExpected, "32 bytes more than it was told to expect"),
    FAULT(kTooManyExpected, "0 of 1 arrivals and 32 bytes are missing"),
    FAULT(kBytesNotOfUnits, "no multiple of 16"),
    FAULT(kMisalignedTarget, kMisaligned),
    FAULT(kMisalignedSource, kMisaligned),
    FAULT(kBeyondSource, "out of bounds: reads 1024 bytes at in + 22528"),
    FAULT(kBeyondSharedMemory, "out of bounds: cp.async.bulk of 1024 bytes at shared memory"),
    FAULT(kNotLoaded, "deadlock"),
    FAULT(kNoInit, "not initialised"),
    FAULT(kInitTwice, "initialised twice"),
    FAULT(kNoFenceAfterInit, "without a fence.mbarrier_init"),
    FAULT(kNoBarrierAfterInit, "initialis"),
    FAULT(kMisalignedMbarrier, "misaligned mbarrier"),
    FAULT(kPlainAccess, "write of a live mbarrier"),
    FAULT(kUsedAfterInval, "not initialised, or invalidated"),
    FAULT(kNoFenceBeforeStore, "bulk copy without a fence.proxy.async after the write of"),
    FAULT(kNoBarrierBeforeStore, kRace),
    FAULT(kNoWaitForReading, "write while a bulk copy reads there"),
    FAULT(kNoCommit, "while a bulk copy reads there"),
    FAULT(kNoWaitAtEnd, "the thread ends without a wait for the end of its reading"),
    FAULT(kReadsResultTooEarly, "race in out"),
    FAULT(kEveryLaneLoads, kSharedMemory),
    FAULT(kKeepsRegisters, "setmaxnreg 240"),
    FAULT(kDivergentRegisters, "deadlock"),
    FAULT(kMoreIsLess, "from 168 to 160 registers is not more"),
};
#undef FAULT

emu::Options schedule(uint64_t seed, int ctas_in_flight, emu::AsyncMode async) {
  emu::Options options;
  options.seed = seed;
  options.ctas_in_flight = ctas_in_flight;
  options.async = async;
  options.device = emu::Device::kSm90;
  return options;
}

constexpr emu::AsyncMode kModes[] = {emu::AsyncMode::kLate, emu::AsyncMode::kEarly,
                                     emu::AsyncMode::kRandom};

}  // namespace

TEST(pipeline_passes_under_all_schedules) {
  for (emu::AsyncMode async : kModes) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      selftest::WithOptions const options(schedule(seed, seed % 2 ? 1 : 2, async));
      CHECK_EQUAL(run(Fault::kNone), "");
    }
  }
  emu::Options ascending = schedule(1, 1, emu::AsyncMode::kLate);
  ascending.random_order = false;
  selftest::WithOptions const options(ascending);
  CHECK_EQUAL(run(Fault::kNone), "");
}

TEST(every_fault_of_the_pipeline_is_caught) {
  for (Case const& fault : kCases) {
    uint64_t seed = 0;
    for (emu::AsyncMode async : kModes) {
      ++seed;
      selftest::WithOptions const options(schedule(seed, int(seed), async));
      std::string const report = run(fault.fault);
      CHECK_CONTAINS(std::string(fault.name) + ", seed " + std::to_string(seed) + ": " + report,
                     fault.report);
    }
  }
}

TEST(phases_by_their_state) {
  Array<float> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[i] = float(100 * i);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out")};
  for (emu::AsyncMode async : kModes) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      selftest::WithOptions const options(schedule(seed, 1, async));
      CHECK_EQUAL(selftest::launch(1, 64, 0, hand_over_by_state, in.data(), out.data()), "");
      for (int i = 0; i < 64; ++i) CHECK_EQUAL(out[i], float(63 - i + (i < 32 ? 200 * i : 0)));
    }
  }
}

TEST(bulk_copies_are_counted) {
  selftest::WithOptions const options(schedule(1, 1, emu::AsyncMode::kLate));
  emu::reset_counters();
  CHECK_EQUAL(run(Fault::kNone), "");
  emu::Counters const counters = emu::counters();
  CHECK_EQUAL(counters.bulk_copies, 33u);  // two in and one out of each tile
  emu::Traffic const in = counters.reads.at("in"), out = counters.writes.at("out");
  CHECK_EQUAL(in.bytes, 11u * 2048);
  CHECK_EQUAL(in.requests, 22u);
  CHECK_EQUAL(in.sectors, 11u * 64);
  CHECK_EQUAL(in.distinct_sectors, 11u * 64);
  CHECK_EQUAL(out.requests, 11u);
  CHECK_EQUAL(out.sectors, 11u * 64);
}

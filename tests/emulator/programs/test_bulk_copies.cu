// The pipeline passes under all schedules; every fault is caught, and for the right reason.

#include <vector>

#include "arrays.h"
#include "bulk_functions.h"
#include "launch.h"
#include "pipeline_kernel.h"

namespace {

using pipeline::Fault;
using pipeline::kTile;
using selftest::Array;

// One launch; "" where it passes.
std::string run(Fault fault) {
  constexpr int kTiles = 11, kCtas = 2;
  Array<float> in(kTiles * kTile), out(kTiles * kTile), last(kCtas);
  for (int i = 0; i < in.size(); ++i) in[i] = float(i % 1000);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out"), last.writable("last")};
  pipeline::Params const params{in.data(), out.data(), last.data(), kTiles, fault};
  std::string const report =
      selftest::launch(kCtas, pipeline::kThreads, sizeof(pipeline::Smem), pipeline::kernel, params);
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

// One thread, whose warp's others are gone, writes a number for another warp and arrives, or
// arrives and then writes it.
__global__ void write_around_arrival(int* out, int value, bool behind) {
  __shared__ int number;
  __shared__ uint64_t gone, written;
  int const thread = int(threadIdx.x);
  if (thread == 0) {
    selftest::mbarrier_init(&gone, 31);
    selftest::mbarrier_init(&written, 1);
  }
  __syncthreads();
  if (thread >= 32) {
    selftest::mbarrier_wait(&written, 0);
    out[thread - 32] = number;
  } else if (thread > 0) {
    selftest::mbarrier_arrive(&gone);
  } else {
    selftest::mbarrier_wait(&gone, 0);
    if (!behind) number = value;
    selftest::mbarrier_arrive(&written);
    if (behind) number = value;
  }
}

constexpr emu::Device kDevice = emu::Device::kSm90;

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
    FAULT(kNoFenceBeforeStore, "without a fence.proxy.async after the write of"),
    FAULT(kNoBarrierBeforeStore, kRace),
    FAULT(kNoWaitForReading, "write while a bulk copy or wgmma reads there"),
    FAULT(kNoCommit, "write while a bulk copy or wgmma reads there"),
    FAULT(kNoWaitAtEnd, "the thread ends without a wait for the end of its reading"),
    FAULT(kReadsResultTooEarly, "race in out"),
    FAULT(kEveryLaneLoads, kSharedMemory),
    FAULT(kKeepsRegisters, "setmaxnreg 240"),
    FAULT(kDivergentRegisters, "deadlock"),
    FAULT(kMoreIsLess, "from 168 to 160 registers is not more"),
};
#undef FAULT

}  // namespace

TEST(pipeline_passes_under_all_schedules) {
  for (emu::AsyncMode async : selftest::kAsyncModes) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      selftest::WithOptions const options(
          selftest::schedule(seed, seed % 2 ? 1 : 2, async, kDevice));
      CHECK_EQUAL(run(Fault::kNone), "");
    }
  }
  emu::Options ascending = selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice);
  ascending.random_order = false;
  selftest::WithOptions const options(ascending);
  CHECK_EQUAL(run(Fault::kNone), "");
}

TEST(every_fault_of_the_pipeline_is_caught) {
  for (Case const& fault : kCases) {
    uint64_t seed = 0;
    for (emu::AsyncMode async : selftest::kAsyncModes) {
      ++seed;
      selftest::WithOptions const options(selftest::schedule(seed, int(seed), async, kDevice));
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
  for (emu::AsyncMode async : selftest::kAsyncModes) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      selftest::WithOptions const options(selftest::schedule(seed, 1, async, kDevice));
      CHECK_EQUAL(selftest::launch(1, 64, 0, hand_over_by_state, in.data(), out.data()), "");
      for (int i = 0; i < 64; ++i) CHECK_EQUAL(out[i], float(63 - i + (i < 32 ? 200 * i : 0)));
    }
  }
}

TEST(what_comes_behind_an_arrival_is_not_handed_over) {
  Array<int> out(32);
  emu::ScopedBuffers const buffers{out.writable("out")};
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    selftest::WithOptions const options(
        selftest::schedule(seed, 1, emu::AsyncMode::kLate, kDevice));
    CHECK_EQUAL(selftest::launch(1, 64, 0, write_around_arrival, out.data(), 7, false), "");
    for (int i = 0; i < 32; ++i) CHECK_EQUAL(out[i], 7);
    CHECK_CONTAINS(selftest::launch(1, 64, 0, write_around_arrival, out.data(), 7, true), kRace);
  }
}

TEST(bulk_copies_are_counted) {
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
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

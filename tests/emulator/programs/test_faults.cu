// The clean kernel passes under all schedules; every fault is caught, and for the right reason.

#include <cmath>
#include <random>
#include <vector>

#include "arrays.h"
#include "faulty_kernel.h"
#include "launch.h"

namespace {

using faulty::Fault;
using faulty::kDepth;
using faulty::kTile;
using selftest::Array;

constexpr char kWrongResult[] = "wrong result";
constexpr int kRows = 56, kColumns = 208, kTilesPerSplit = 3;

// One launch; "" where it passes.
std::string run(Fault fault, unsigned seed) {
  Array<__half> a(kRows * kDepth), b(kColumns * kDepth), out(kRows * kDepth);
  Array<float> sums(kRows * kDepth), row_sums(kRows);
  int const blocks = (kRows + kTile - 1) / kTile;
  int const tiles = (kColumns + kTile - 1) / kTile;
  int const splits = (tiles + kTilesPerSplit - 1) / kTilesPerSplit;
  Array<int> tickets(blocks), turns(blocks);
  std::mt19937 random(seed);
  for (int i = 0; i < kRows * kDepth; ++i) a[i] = __half(float(int(random() % 3) - 1));
  for (int i = 0; i < kColumns * kDepth; ++i) b[i] = __half(float(int(random() % 3) - 1));
  for (int i = 0; i < kRows * kDepth; ++i) out[i] = __half(NAN);

  emu::ScopedBuffers const buffers{a.read_only("a"),
                                   b.read_only("b"),
                                   sums.writable("sums"),
                                   row_sums.writable("row_sums"),
                                   tickets.writable("tickets"),
                                   turns.writable("turns"),
                                   out.writable("out")};
  faulty::Params const params{a.data(),       b.data(),       sums.data(), row_sums.data(),
                              tickets.data(), turns.data(),   out.data(),  kRows,
                              kColumns,       kTilesPerSplit, fault};
  std::string const report = selftest::launch(dim3(blocks, splits), faulty::kThreads,
                                              sizeof(faulty::Smem), faulty::kernel, params);
  if (!report.empty()) return report;

  for (int row = 0; row < kRows; ++row) {
    std::vector<float> expected(kDepth);
    float row_sum = 0.f;
    for (int col = 0; col < kColumns; ++col) {
      float s = 0.f;
      for (int k = 0; k < kDepth; ++k) s += float(a[row * kDepth + k]) * float(b[col * kDepth + k]);
      row_sum += s;
      for (int k = 0; k < kDepth; ++k) expected[k] += s * float(b[col * kDepth + k]);
    }
    if (row_sums[row] != row_sum) return kWrongResult;
    for (int k = 0; k < kDepth; ++k) {
      if (float(out[row * kDepth + k]) != float(__half(expected[k]))) return kWrongResult;
    }
  }
  return "";
}

struct Case {
  Fault fault;
  char const* name;
  char const* report;  // part of it
};

constexpr char kSharedRace[] = "race in shared memory";
constexpr char kDeadlock[] = "deadlock";

#define FAULT(name, report) {Fault::name, #name, report}
constexpr Case kCases[] = {
    FAULT(kNoBarrierAfterLoad, kSharedRace),
    FAULT(kNoBarrierBeforeReuse, kSharedRace),
    FAULT(kWaitForOneLess, "while a cp.async is in flight"),
    FAULT(kNoWait, "while a cp.async is in flight"),
    FAULT(kNoCommit, "while a cp.async is in flight"),
    FAULT(kNoRowPredicateA, "a buffer of 7168 bytes"),
    FAULT(kNoRowPredicateB, "a buffer of 26624 bytes"),
    FAULT(kNotLoaded, kWrongResult),
    FAULT(kMisalignedCopyTarget, "cp.async: the target"),
    FAULT(kMisalignedCopySource, "cp.async: the source"),
    FAULT(kCopyTargetOutside, "bytes of shared memory"),
    FAULT(kNoSwizzleOnStore, kWrongResult),
    FAULT(kMisalignedLdmatrix, "not 16-byte aligned"),
    FAULT(kLdmatrixOutside, "bytes of shared memory"),
    FAULT(kDivergentMma, kDeadlock),
    FAULT(kNoSyncWarp, "without a __syncwarp"),
    FAULT(kShuffleByHalfAWarp, kDeadlock),
    FAULT(kShuffleFromOutsideMask, "reads lane 20"),
    FAULT(kShuffleMasksDiffer, kDeadlock),
    FAULT(kNoPairBarrier, kSharedRace),
    FAULT(kPairBarrierForAll, kDeadlock),
    FAULT(kPairBarrierShared, kSharedRace),
    FAULT(kPairBarrierBadCount, "for 40 threads"),
    FAULT(kPairBarrierBadId, "does not exist"),
    FAULT(kDivergentBarrier, "an .aligned operation"),
    FAULT(kNoTicketBarrier, kSharedRace),
    FAULT(kNoStagingBarrier, kSharedRace),
    FAULT(kNoRowPredicateOut, "a buffer of 7168 bytes"),
    FAULT(kWritesInput, "read-only"),
    FAULT(kMisalignedVectorStore, "misaligned"),
    FAULT(kStoreTwice, "race in out"),
    FAULT(kSharedOutside, "out of bounds"),
    FAULT(kNoAtomic, "race in sums"),
    FAULT(kNoTurn, "race in row_sums"),
    FAULT(kNoFenceBeforeRelease, "race in"),
    FAULT(kNoFenceAfterAcquire, "race in"),
    FAULT(kNoBarrierAfterAcquire, "race in"),
    FAULT(kNoBarrierBeforeRelease, "race in"),
    FAULT(kNoRelease, kDeadlock),
};
#undef FAULT

}  // namespace

TEST(clean_kernel_passes_under_all_schedules) {
  for (emu::AsyncMode async : selftest::kAsyncModes) {
    for (int ctas : {1, 3, 6}) {
      for (uint64_t seed = 1; seed <= 8; ++seed) {
        selftest::WithOptions const options(selftest::schedule(seed, ctas, async));
        CHECK_EQUAL(run(Fault::kNone, unsigned(seed)), "");
      }
    }
  }
  emu::Options ascending;
  ascending.random_order = false;
  selftest::WithOptions const options(ascending);
  CHECK_EQUAL(run(Fault::kNone, 1), "");
}

TEST(every_fault_is_caught) {
  struct Schedule {
    uint64_t seed;
    int ctas;
    emu::AsyncMode async;
  };
  constexpr Schedule kSchedules[] = {{1, 1, emu::AsyncMode::kLate},
                                     {2, 1, emu::AsyncMode::kEarly},
                                     {3, 3, emu::AsyncMode::kLate},
                                     {4, 6, emu::AsyncMode::kRandom}};
  for (Case const& fault : kCases) {
    for (Schedule const& s : kSchedules) {
      selftest::WithOptions const options(selftest::schedule(s.seed, s.ctas, s.async));
      std::string const report = run(fault.fault, unsigned(s.seed));
      CHECK_CONTAINS(std::string(fault.name) + ", seed " + std::to_string(s.seed) + ": " + report,
                     fault.report);
    }
  }
}

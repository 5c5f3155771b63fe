// cp.reduce.async.bulk: CTAs add their tiles to one in global memory, right under all schedules;
// every fault is caught, and for the right reason.

#include "arrays.h"
#include "bulk_functions.h"
#include "launch.h"

namespace {

using selftest::Array;

enum class Fault {
  kNone,
  kNoFence,
  kNoBarrier,
  kNoWaitForReading,
  kNoCommit,
  kNoWaitAtEnd,
  kWaitsForReadingOnly,
  kReadsBeforeOthersAreDone,
  kBytesNotOfUnits,
  kMisalignedTarget,
  kBeyondTarget,
};

constexpr int kThreads = 64;
constexpr int kCtas = 3;
constexpr int kRounds = 2;

// Small whole numbers: their sums are exact in every type and order.
__host__ __device__ int addend(int cta, int round, int i) { return (cta + 2 * round + i) % 5 + 1; }

template <class T>
__global__ void add_tiles(T* sums, T* seen, Fault fault) {
  __shared__ alignas(128) T tile[kThreads];
  int const thread = int(threadIdx.x);
  bool const adds = thread == 0;
  auto const is = [fault](Fault one) { return fault == one; };
  for (int round = 0; round < kRounds; ++round) {
    tile[thread] = T(float(addend(int(blockIdx.x), round, thread)));
    if (!is(Fault::kNoFence)) selftest::fence_proxy_async();
    if (!is(Fault::kNoBarrier)) __syncthreads();
    if (adds) {
      T* const to =
          sums + (is(Fault::kBeyondTarget) ? 16 : 0) + (is(Fault::kMisalignedTarget) ? 1 : 0);
      int const bytes = int(sizeof(tile)) - (is(Fault::kBytesNotOfUnits) ? 4 : 0);
      selftest::bulk_add(to, tile, bytes);
      if (!is(Fault::kNoCommit)) selftest::bulk_store_commit();
      if (!is(Fault::kNoWaitForReading) && round + 1 < kRounds) {
        selftest::bulk_store_wait_read<0>();
      }
    }
    __syncthreads();
  }
  if (adds && is(Fault::kWaitsForReadingOnly)) selftest::bulk_store_wait_read<0>();
  if (adds && !is(Fault::kWaitsForReadingOnly) && !is(Fault::kNoWaitAtEnd)) {
    selftest::bulk_store_wait<0>();
  }
  __syncthreads();
  // Alone, a CTA may read what it has added after the wait for it.
  bool const reads = gridDim.x == 1 || is(Fault::kReadsBeforeOthersAreDone);
  if (reads && thread == kThreads - 1) seen[blockIdx.x] = sums[0];
}

// One launch; "" where it passes.
template <class T>
std::string run(Fault fault, int ctas) {
  Array<T> sums(kThreads), seen(kCtas);
  for (int i = 0; i < kThreads; ++i) sums[i] = T(float(i));
  emu::ScopedBuffers const buffers{sums.writable("sums"), seen.writable("seen")};
  std::string const report =
      selftest::launch(ctas, kThreads, 0, add_tiles<T>, sums.data(), seen.data(), fault);
  if (!report.empty()) return report;
  for (int i = 0; i < kThreads; ++i) {
    int expected = i;
    for (int cta = 0; cta < ctas; ++cta) {
      for (int round = 0; round < kRounds; ++round) expected += addend(cta, round, i);
    }
    if (float(sums[i]) != float(expected)) return "wrong sum";
  }
  if (ctas == 1 && float(seen[0]) != float(sums[0])) return "wrong first sum as it is seen";
  return "";
}

constexpr emu::Device kDevice = emu::Device::kSm90;

template <class T>
void check_sums() {
  for (emu::AsyncMode async : selftest::kAsyncModes) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      selftest::WithOptions const options(selftest::schedule(seed, int(seed), async, kDevice));
      CHECK_EQUAL(run<T>(Fault::kNone, kCtas), "");
      CHECK_EQUAL(run<T>(Fault::kNone, 1), "");
    }
  }
}

struct Case {
  Fault fault;
  char const* name;
  int ctas;
  char const* report;  // part of it
};

#define FAULT(name, ctas, report) {Fault::name, #name, ctas, report}
constexpr Case kCases[] = {
    FAULT(kNoFence, kCtas, "without a fence.proxy.async after the write of"),
    FAULT(kNoBarrier, kCtas, "race in shared memory"),
    FAULT(kNoWaitForReading, kCtas, "write while a bulk copy or wgmma reads there"),
    FAULT(kNoCommit, kCtas, "write while a bulk copy or wgmma reads there"),
    FAULT(kNoWaitAtEnd, kCtas, "the thread ends without a wait for the end of its reading"),
    FAULT(kWaitsForReadingOnly, 1, "race in sums"),
    FAULT(kReadsBeforeOthersAreDone, kCtas, "race in sums"),
    FAULT(kBytesNotOfUnits, kCtas, "no multiple of 16"),
    FAULT(kMisalignedTarget, kCtas, "is not 16-byte aligned"),
    FAULT(kBeyondTarget, kCtas, "out of bounds: writes 256 bytes at sums + 64"),
};
#undef FAULT

}  // namespace

TEST(bulk_sums_of_f32) { check_sums<float>(); }
TEST(bulk_sums_of_f64) { check_sums<double>(); }
TEST(bulk_sums_of_f16) { check_sums<__half>(); }
TEST(bulk_sums_of_bf16) { check_sums<__nv_bfloat16>(); }
TEST(bulk_sums_of_u32) { check_sums<uint32_t>(); }
TEST(bulk_sums_of_s32) { check_sums<int32_t>(); }
TEST(bulk_sums_of_u64) { check_sums<unsigned long long>(); }

TEST(every_fault_of_a_bulk_sum_is_caught) {
  for (Case const& fault : kCases) {
    uint64_t seed = 0;
    for (emu::AsyncMode async : selftest::kAsyncModes) {
      ++seed;
      selftest::WithOptions const options(selftest::schedule(seed, int(seed), async, kDevice));
      std::string const report = run<float>(fault.fault, fault.ctas);
      CHECK_CONTAINS(std::string(fault.name) + ", seed " + std::to_string(seed) + ": " + report,
                     fault.report);
    }
  }
}

TEST(the_order_of_bulk_sums_matters_to_floats_only) {
  emu::Options options = selftest::schedule(1, kCtas, emu::AsyncMode::kLate, kDevice);
  options.ordered_sums = true;
  selftest::WithOptions const with_options(options);
  CHECK_CONTAINS(run<float>(Fault::kNone, kCtas), "race in sums");
  CHECK_CONTAINS(run<__half>(Fault::kNone, kCtas), "race in sums");
  CHECK_EQUAL(run<uint32_t>(Fault::kNone, kCtas), "");
}

TEST(bulk_sums_are_counted_as_atomic_traffic) {
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
  emu::reset_counters();
  CHECK_EQUAL(run<float>(Fault::kNone, kCtas), "");
  emu::Counters const counters = emu::counters();
  CHECK_EQUAL(counters.bulk_copies, uint64_t(kCtas * kRounds));
  emu::Traffic const sums = counters.atomic_updates.at("sums");
  CHECK_EQUAL(sums.bytes, uint64_t(kCtas * kRounds * 256));
  CHECK_EQUAL(sums.requests, uint64_t(kCtas * kRounds));
  CHECK_EQUAL(sums.sectors, uint64_t(kCtas * kRounds * 8));
  CHECK_EQUAL(sums.distinct_sectors, 8u);
}

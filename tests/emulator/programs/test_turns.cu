// CTAs that add to the same rows in a fixed order, which flags with acquire and release keep: what
// a reproducible sum over CTAs does. Passes under all schedules; every part of it is needed.

#include <string>

#include "arrays.h"
#include "device_functions.h"
#include "launch.h"

namespace {

using selftest::Array;

enum class Fault {
  kNone,
  kNoWait,
  kRelaxedWait,
  kWrongTurn,
  kNoBarrierAfterWait,
  kNoBarrierBeforeRelease,
  kRelaxedRelease,
  kNoRelease,
};

struct Params {
  int* next_ticket;
  int* turn;
  float* sums;  // (threads,)
  Fault fault;
};

constexpr int kThreads = 96, kCtas = 5;

__global__ void add_in_turn(Params p) {
  extern __shared__ __align__(128) char smem[];
  auto const is = [&p](Fault fault) { return p.fault == fault; };
  int& shared_ticket = *reinterpret_cast<int*>(smem);
  int const thread = int(threadIdx.x);
  if (thread == 0) shared_ticket = atomicAdd(p.next_ticket, 1);
  __syncthreads();
  int const ticket = shared_ticket;

  if (thread == 0 && !is(Fault::kNoWait)) {
    int const wanted = ticket + (is(Fault::kWrongTurn) ? 1 : 0);
    if (is(Fault::kRelaxedWait)) {
      while (*static_cast<int volatile*>(p.turn) != wanted) continue;
    } else {
      while (selftest::load_acquire(p.turn) != wanted) continue;
    }
  }
  if (!is(Fault::kNoBarrierAfterWait)) __syncthreads();
  p.sums[thread] = 2.f * p.sums[thread] + float(ticket);  // tells the order of the additions
  if (!is(Fault::kNoBarrierBeforeRelease)) __syncthreads();
  if (thread == 0 && is(Fault::kRelaxedRelease)) atomicAdd(p.turn, 1);
  if (thread == 0 && !is(Fault::kRelaxedRelease) && !is(Fault::kNoRelease)) {
    selftest::red_release_add(p.turn, 1);
  }
}

// One launch; "" where it passes.
std::string run(Fault fault) {
  Array<int> next_ticket(1), turn(1);
  Array<float> sums(kThreads);
  emu::ScopedBuffers const buffers{next_ticket.writable("next_ticket"), turn.writable("turn"),
                                   sums.writable("sums")};
  Params const params{next_ticket.data(), turn.data(), sums.data(), fault};
  std::string const report = selftest::launch(kCtas, kThreads, 128, add_in_turn, params);
  if (!report.empty()) return report;
  float expected = 0.f;
  for (int ticket = 0; ticket < kCtas; ++ticket) expected = 2.f * expected + float(ticket);
  for (int i = 0; i < kThreads; ++i) {
    if (sums[i] != expected) return "wrong result";
  }
  return "";
}

// All seeds and numbers of CTAs in flight.
template <class Visit>
void for_each_schedule(Visit visit) {
  for (int ctas : {1, 2, 5}) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      emu::Options options;
      options.seed = seed;
      options.ctas_in_flight = ctas;
      selftest::WithOptions const scope(options);
      visit();
    }
  }
}

// An acquire of one flag says nothing of what another one hands over.
__global__ void acquire_the_wrong_flag(int* flags, float* data) {
  if (blockIdx.x == 0) {
    data[0] = 1.f;
    selftest::red_release_add(&flags[0], 1);
  } else {
    while (*static_cast<int volatile*>(&flags[0]) == 0) continue;
    selftest::load_acquire(&flags[1]);
    data[0] = 2.f;
  }
}

// Each CTA adds 1; in ascending order, if they wait.
__global__ void add_ones(float* sums, int* turn, bool waits) {
  int const thread = int(threadIdx.x);
  if (thread == 0 && waits) {
    while (selftest::load_acquire(turn) != int(blockIdx.x)) continue;
  }
  __syncthreads();
  selftest::red_add(&sums[thread], 1.f);
  __syncthreads();
  if (thread == 0) selftest::red_release_add(turn, 1);
}

// Adds zeros, which change nothing, yet is no spinning.
__global__ void add_zeros(float* sum) {
  for (int i = 0; i < 3000; ++i) selftest::red_add(sum, 0.f);
  selftest::red_add(sum, 1.f);
}

}  // namespace

TEST(turns_are_kept_under_all_schedules) {
  for_each_schedule([] { CHECK_EQUAL(run(Fault::kNone), ""); });
}

TEST(turns_need_every_part) {
  struct Case {
    Fault fault;
    char const* report;  // part of it
  };
  constexpr Case kCases[] = {
      {Fault::kNoWait, "race in sums"},
      {Fault::kRelaxedWait, "race in sums"},
      {Fault::kWrongTurn, "deadlock"},
      {Fault::kNoBarrierAfterWait, "race in sums"},
      {Fault::kNoBarrierBeforeRelease, "race in sums"},
      {Fault::kRelaxedRelease, "race in sums"},
      {Fault::kNoRelease, "deadlock"},
  };
  for (Case const& fault : kCases) {
    for_each_schedule([&] {
      CHECK_CONTAINS("fault " + std::to_string(int(fault.fault)) + ", " +
                         emu::to_string(emu::options()) + ": " + run(fault.fault),
                     fault.report);
    });
  }
}

TEST(an_acquire_covers_its_own_flag) {
  Array<int> flags(2);
  Array<float> data(1);
  emu::ScopedBuffers const buffers{flags.writable("flags"), data.writable("data")};
  emu::Options options;
  options.ctas_in_flight = 2;
  selftest::WithOptions const scope(options);
  CHECK_CONTAINS(selftest::launch(2, 1, 0, acquire_the_wrong_flag, flags.data(), data.data()),
                 "race in data");
}

TEST(sums_may_be_ordered) {
  for (bool const ordered : {false, true}) {
    for (bool const waits : {false, true}) {
      Array<float> sums(64);
      Array<int> turn(1);
      emu::ScopedBuffers const buffers{sums.writable("sums"), turn.writable("turn")};
      emu::Options options;
      options.ctas_in_flight = 3;
      options.ordered_sums = ordered;
      selftest::WithOptions const scope(options);
      std::string const report =
          selftest::launch(3, 64, 0, add_ones, sums.data(), turn.data(), waits);
      if (ordered && !waits) {
        CHECK_CONTAINS(report, "race in sums");
      } else {
        CHECK_EQUAL(report, "");
        CHECK_EQUAL(sums[63], 3.f);
      }
    }
  }
}

TEST(reductions_never_wait) {
  Array<float> sum(1);
  emu::ScopedBuffers const buffers{sum.writable("sum")};
  emu::Options options;
  options.ctas_in_flight = 2;
  selftest::WithOptions const scope(options);
  CHECK_EQUAL(selftest::launch(2, 64, 0, add_zeros, sum.data()), "");
  CHECK_EQUAL(sum[0], 128.f);
}

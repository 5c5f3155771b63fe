// memory.ptx: loads and stores, asynchronous copies, atomics, and how CTAs hand over what they
// write.

#include <algorithm>
#include <cstring>

#include "../arrays.h"
#include "kernels.h"

namespace {

using namespace selftest;

TEST(vectors_go_through_shared_memory) {
  Array<uint32_t> in(4 * 96), out(4 * 96);
  for (int i = 0; i < in.size(); ++i) in[i] = uint32_t(i);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out")};
  emu::reset_counters();
  CHECK_EQUAL(launch_kernel("mirror", 1, 96, 0, in.data(), out.data()), "");
  for (int t = 0; t < 96; ++t) {
    for (int i = 0; i < 4; ++i) CHECK_EQUAL(out[4 * t + i], uint32_t(4 * (95 - t) + i));
  }
  // A vector is one request of each warp, whatever its length.
  emu::Counters const counts = emu::counters();
  CHECK_EQUAL(counts.reads.at("in").requests, 3u);
  CHECK_EQUAL(counts.reads.at("in").sectors, 48u);
  CHECK_EQUAL(counts.writes.at("out").requests, 3u);
  CHECK_EQUAL(counts.shared_stores.requests, 3u);
  CHECK_EQUAL(counts.shared_stores.wavefronts, 12u);
  CHECK_EQUAL(counts.shared_loads.requests, 9u);
}

TEST(narrow_loads_extend) {
  std::vector<uint32_t> in{0xfedc8765}, out(6);
  auto const from = writable(in, "in");
  auto const to = writable(out);
  CHECK_EQUAL(launch_kernel("narrow", 1, 1, 0, in.data(), out.data()), "");
  CHECK_EQUAL(out[0], 0x65u);
  CHECK_EQUAL(out[1], 0x65u);
  CHECK_EQUAL(out[2], 0xffff8765u);
  CHECK_EQUAL(out[3] & 0xffffff, 0x878765u);
  CHECK_EQUAL(out[4], 0xfedc8765u);
  CHECK_EQUAL(out[5], 0xffffffffu);
}

TEST(spaces_of_addresses) {
  std::vector<uint8_t> out(5, 9);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("spaces", 1, 1, 0, out.data()), "");
  CHECK((out == std::vector<uint8_t>{1, 0, 1, 1, 0}));
}

TEST(asynchronous_copies) {
  std::vector<uint32_t> in(8), out(8);
  for (uint32_t i = 0; i < 8; ++i) in[i] = 100 + i;
  auto const from = writable(in, "in");
  auto const to = writable(out);
  for (emu::AsyncMode mode : {emu::AsyncMode::kLate, emu::AsyncMode::kEarly}) {
    WithOptions const options({.async = mode});
    for (uint32_t given : {16u, 12u, 5u, 0u}) {
      CHECK_EQUAL(launch_kernel("copies", 1, 1, 32, in.data(), out.data(), given, 0u), "");
      uint32_t want[8] = {};
      std::memcpy(want, in.data(), given);
      std::copy(in.begin() + 4, in.end(), want + 4);
      if (given == 0) want[6] = 0;  // its predicate says to read nothing
      for (int i = 0; i < 8; ++i) CHECK_EQUAL(out[size_t(i)], want[i]);
    }
  }
  CHECK_CONTAINS(launch_kernel("copies", 1, 1, 32, in.data(), out.data(), 16u, 1u),
                 "read while a cp.async is in flight there");
  CHECK_CONTAINS(launch_kernel("copies", 1, 1, 28, in.data(), out.data(), 16u, 0u),
                 "cp.async: the target is 28 bytes into");
}

TEST(atomics_of_all_kinds) {
  constexpr uint32_t kThreads = 64, kTotal = kThreads * (kThreads - 1) / 2;
  std::vector<uint32_t> numbers(16), olds(kThreads);
  numbers[2] = 1000;
  auto const buffer = writable(numbers, "numbers");
  auto const old_buffer = writable(olds, "olds");
  CHECK_EQUAL(launch_kernel("atomics", 1, kThreads, 0, numbers.data(), olds.data()), "");
  std::sort(olds.begin(), olds.end());
  for (uint32_t i = 0; i < kThreads; ++i) CHECK_EQUAL(olds[i], i);
  float sum;
  std::memcpy(&sum, &numbers[7], 4);
  uint64_t wide_sum;
  std::memcpy(&wide_sum, &numbers[8], 8);
  double double_sum;
  std::memcpy(&double_sum, &numbers[10], 8);
  CHECK_EQUAL(numbers[0], kThreads);
  CHECK_EQUAL(numbers[1], kThreads - 1);
  CHECK_EQUAL(numbers[2], 0u);
  CHECK_EQUAL(numbers[3], 63u);
  CHECK_EQUAL(numbers[4], 0u);
  CHECK_EQUAL(numbers[5], kThreads % 10);
  CHECK_EQUAL(numbers[6], 10 - kThreads % 10);
  CHECK_EQUAL(sum, float(kTotal));
  CHECK_EQUAL(wide_sum, uint64_t(kTotal));
  CHECK_EQUAL(double_sum, double(kTotal));
  CHECK_EQUAL(numbers[12], 0x54005800u);  // 64 and 128
  CHECK_EQUAL(numbers[13], 0x42804300u);
  CHECK_EQUAL(numbers[14], 2 * kThreads);
  CHECK_EQUAL(numbers[15], 7 * kThreads);
}

TEST(locks) {
  std::vector<uint32_t> lock(1), number(1);
  auto const lock_buffer = writable(lock, "lock");
  auto const buffer = writable(number, "number");
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WithOptions const options({.seed = seed, .ctas_in_flight = 4});
    number[0] = 0;
    CHECK_EQUAL(launch_kernel("locked", 8, 1, 0, lock.data(), number.data()), "");
    CHECK_EQUAL(number[0], 8u);
  }
}

TEST(ctas_hand_over) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WithOptions const options({.seed = seed, .ctas_in_flight = 4});
    for (uint32_t order : {0u, 1u, 2u}) {
      std::vector<uint32_t> data(1), flag(1), out(4);
      auto const data_buffer = writable(data, "data");
      auto const flag_buffer = writable(flag, "flag");
      auto const buffer = writable(out);
      std::string const report =
          launch_kernel("handed_over", 4, 1, 0, data.data(), flag.data(), out.data(), order);
      if (order == 2) {
        CHECK_CONTAINS(report, "race in data + 0: read that nothing orders after the write");
      } else {
        CHECK_EQUAL(report, "");
        for (int i = 1; i < 4; ++i) CHECK_EQUAL(out[size_t(i)], 77u);
      }
    }
  }
}

TEST(order_of_the_cta_s_scope_ends_with_the_cta) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WithOptions const options({.seed = seed, .ctas_in_flight = 4});
    for (uint32_t scopes = 0; scopes <= 4; ++scopes) {
      std::vector<uint32_t> data(1), flag(1), out(4);
      auto const data_buffer = writable(data, "data");
      auto const flag_buffer = writable(flag, "flag");
      auto const buffer = writable(out);
      std::string const report = launch_kernel("handed_over_by_scope", 4, 1, 0, data.data(),
                                               flag.data(), out.data(), scopes);
      if (scopes == 3) {
        CHECK_EQUAL(report, "");
      } else {
        CHECK_CONTAINS(report, "race in data + 0: read that nothing orders after the write of");
      }
    }
  }
}

TEST(warps_hand_over_in_shared_memory) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    for (bool random_order : {true, false}) {
      WithOptions const options({.seed = seed, .random_order = random_order});
      for (uint32_t how = 0; how <= 3; ++how) {
        std::vector<uint32_t> out(4);
        auto const buffer = writable(out);
        std::string const report = launch_kernel("handed_over_in_cta", 1, 128, 0, out.data(), how);
        if (how == 2) {
          CHECK_CONTAINS(report, "race in shared memory + 16: read without a barrier");
        } else {
          CHECK_EQUAL(report, "");
          for (int i = 1; i < 4; ++i) CHECK_EQUAL(out[size_t(i)], 55u);
        }
      }
    }
  }
}

TEST(atomics_of_a_cta_race_with_those_of_another) {
  std::vector<uint32_t> number(1);
  auto const buffer = writable(number, "number");
  CHECK_EQUAL(launch_kernel("count", 4, 64, 0, number.data(), 1u), "");
  CHECK_EQUAL(launch_kernel("count", 1, 64, 0, number.data(), 0u), "");
  CHECK_EQUAL(number[0], 5 * 64u);
  std::string const report = launch_kernel("count", 2, 64, 0, number.data(), 0u);
  CHECK_CONTAINS(report, "race in number + 0: write that nothing orders after the write of CTA #");
  CHECK_CONTAINS(report, "(atomic, .cta)");
}

TEST(generic_addresses_by_the_window_of_a_cta) {
  emu::Options options;
  options.ctas_in_flight = 2;
  WithOptions const scope(options);
  std::vector<uint64_t> slot(1);
  std::vector<uint8_t> out(8);
  auto const slot_buffer = writable(slot, "slot");
  auto const out_buffer = writable(out);
  auto const report = [&](uint32_t local, uint32_t how, uint32_t own) {
    slot[0] = 0;
    return launch_kernel("foreign_window", 2, 1, 0, slot.data(), out.data(), local, how, own);
  };
  enum : uint32_t { kAsk, kRead, kAtomic, kAcquire };
  for (uint32_t how : {kAsk, kRead, kAtomic, kAcquire}) {
    out.assign(8, 0);
    CHECK_EQUAL(report(0, how, 1), "");
    CHECK_EQUAL(int(out[0]) * 2 + out[1], 2);
    CHECK_EQUAL(int(out[4]), how == kAsk ? 0 : 5);
  }
  // In another CTA's window: neither the thread's shared memory nor global memory.
  out.assign(8, 1);
  CHECK_EQUAL(report(0, kAsk, 0), "");
  CHECK_EQUAL(int(out[0]) * 2 + out[1], 0);
  for (uint32_t how : {kRead, kAtomic, kAcquire}) {
    CHECK_CONTAINS(report(0, how, 0), "out of bounds: shared memory + 0 of another CTA, (0,0,0)");
  }
  CHECK_CONTAINS(report(1, kRead, 0), "out of bounds: 4 bytes at local memory");
  CHECK_CONTAINS(report(1, kAtomic, 1), "an atomic in local memory");
}

TEST(faults_of_memory) {
  std::vector<uint32_t> out(8);
  auto const buffer = writable(out);
  auto const report = [&](uint32_t fault, unsigned threads = 1) {
    return launch_kernel("memory_faults", 1, threads, 0, out.data(), fault);
  };
  CHECK_EQUAL(report(0, 64), "");
  CHECK_CONTAINS(report(1), "out of bounds: 4 bytes at shared memory + 4096, of 4096");
  CHECK_CONTAINS(report(2), "misaligned access of 4 bytes at shared memory + 2");
  CHECK_CONTAINS(report(3), "misaligned access of 16 bytes at out + 8");
  CHECK_CONTAINS(report(4, 2), "write without a __syncwarp after the write of warp 0");
  CHECK_CONTAINS(report(4, 64), "race in shared memory + 0: write without a");
  CHECK_CONTAINS(report(5), "misaligned atomic at shared memory + 4094");
  CHECK_CONTAINS(report(6, 64), "race in shared memory + 0: ");
  CHECK_CONTAINS(report(7), "cp.async: 12 bytes of a copy of 8");
  CHECK_CONTAINS(report(8), "out of bounds: reads 4 bytes at");
}

TEST(unwritten_shared_memory_is_poison) {
  std::vector<uint32_t> out(1);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("unwritten_shared", 1, 1, 0, out.data()), "");
  CHECK_EQUAL(out[0], ~0u);
}

}  // namespace

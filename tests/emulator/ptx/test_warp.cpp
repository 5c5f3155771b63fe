// warp.ptx: shuffles, votes, reductions, barriers, and what is wrong with them.

#include <algorithm>
#include <functional>

#include "kernels.h"

namespace {

using namespace selftest;

// As the PTX ISA says it of shfl.sync.
struct Expected {
  uint32_t value;
  uint32_t in_range;
};
Expected shuffled(std::string const& mode, int lane, uint32_t b, uint32_t c) {
  int const bval = int(b & 31), cval = int(c & 31), mask = int(c >> 8 & 31);
  int const max_lane = (lane & mask) | (cval & ~mask), min_lane = lane & mask;
  int j = 0;
  bool pval = false;
  if (mode == "up") j = lane - bval, pval = j >= max_lane;
  if (mode == "down") j = lane + bval, pval = j <= max_lane;
  if (mode == "bfly") j = lane ^ bval, pval = j <= max_lane;
  if (mode == "idx") j = min_lane | (bval & ~mask), pval = j <= max_lane;
  if (!pval) j = lane;
  return {uint32_t(100 + j), uint32_t(pval)};
}

TEST(shuffles) {
  for (std::string mode : {"up", "down", "bfly", "idx"}) {
    for (uint32_t b : {0u, 1u, 3u, 8u, 31u, 40u}) {
      // Segments of 32, of 8, and a clamp in the middle; `up` clamps from below.
      for (uint32_t c : {0x1fu, 0x181fu, 0x0u, 0x1800u, 0x14u}) {
        std::vector<uint32_t> out(64);
        auto const buffer = writable(out);
        std::string const kernel = "shuffle_" + mode;
        CHECK_EQUAL(launch_kernel(kernel.c_str(), 1, 32, 0, out.data(), b, c), "");
        for (int l = 0; l < 32; ++l) {
          Expected const want = shuffled(mode, l, b, c);
          CHECK_EQUAL(out[size_t(2 * l)], want.value);
          CHECK_EQUAL(out[size_t(2 * l + 1)], want.in_range);
        }
      }
    }
  }
}

TEST(votes_and_reductions) {
  for (uint32_t mask : {~0u, 0x0ff00f01u, 0x80000000u}) {
    for (uint32_t variant : {0u, 1u, 2u}) {
      std::vector<uint32_t> in(32), out(32 * 16);
      for (uint32_t i = 0; i < 32; ++i) {
        in[i] = variant == 0 ? 2654435761u * (i + 1) : variant == 1 ? 6 : 7 + 2 * i;
      }
      auto const from = writable(in, "in");
      auto const to = writable(out);
      CHECK_EQUAL(launch_kernel("votes", 1, 32, 0, in.data(), out.data(), mask), "");
      uint32_t ballot = 0, sum = 0, largest = 0, all = ~0u, any = 0, odd = 0;
      int32_t least = INT32_MAX;
      for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint32_t const x = in[size_t(l)];
        ballot |= (x & 1) << l;
        sum += x;
        least = std::min(least, int32_t(x));
        largest = std::max(largest, x);
        all &= x;
        any |= x;
        odd ^= x;
      }
      for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint32_t same = 0;
        for (int k = 0; k < 32; ++k) {
          bool const alike = in[size_t(k)] % 4 == in[size_t(l)] % 4;
          if ((mask >> k & 1) && alike) same |= 1u << k;
        }
        bool const uniform = ballot == mask || ballot == 0;
        uint32_t const want[13] = {ballot,  ballot != 0, ballot == mask,
                                   uniform, sum,         uint32_t(least),
                                   largest, all,         any,
                                   odd,     same,        uniform ? mask : 0,
                                   uniform};
        for (int i = 0; i < 13; ++i) CHECK_EQUAL(out[size_t(16 * l + i)], want[i]);
        // Lanes that are about to exit may still be there.
        CHECK_EQUAL(out[size_t(16 * l + 13)] & mask, mask);
      }
    }
  }
}

TEST(named_barriers) {
  std::vector<uint32_t> out(64 * 4);
  auto const buffer = writable(out);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    WithOptions const options({.seed = seed});
    CHECK_EQUAL(launch_kernel("barriers", 1, 64, 0, out.data()), "");
    for (uint32_t t = 0; t < 64; ++t) {
      CHECK_EQUAL(out[4 * t], t < 32 ? 0 : t - 32);
      CHECK_EQUAL(out[4 * t + 1], 40u);
      CHECK_EQUAL(out[4 * t + 2], 0u);
      CHECK_EQUAL(out[4 * t + 3], 1u);
    }
  }
}

TEST(who_a_thread_is) {
  dim3 const grid(2, 3, 2), block(5, 4, 3);
  constexpr uint32_t kThreads = 60, kBlocks = 12;
  std::vector<uint32_t> out(4 * kThreads * kBlocks, 12345);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("identity", grid, block, 0, out.data()), "");
  for (uint32_t i = 0; i < kThreads * kBlocks; ++i) {
    uint32_t const thread = i % kThreads, lane = thread % 32;
    CHECK_EQUAL(out[4 * i], lane);
    CHECK_EQUAL(out[4 * i + 1], thread / 32);
    CHECK_EQUAL(out[4 * i + 2], (1u << lane) - 1);
    CHECK_EQUAL(out[4 * i + 3], ~((1u << lane) - 1));
  }
}

TEST(faults_of_warps) {
  auto const report = [](uint32_t fault) { return launch_kernel("warp_faults", 1, 32, 0, fault); };
  CHECK_EQUAL(report(0), "");
  CHECK_CONTAINS(report(1), "an .aligned operation, which lane");
  CHECK_EQUAL(report(2), "");
  CHECK_CONTAINS(report(3), "leaves out the calling lane");
  std::string const deadlock = report(5);
  CHECK_CONTAINS(deadlock, "deadlock: no thread can go on");
  CHECK_CONTAINS(deadlock,
                 "lanes 0000ffff barrier 2 for 32 threads (0 there) at warp.cu:31 (PTX line ");
  CHECK_CONTAINS(deadlock,
                 "lanes ffff0000 barrier 1 for 32 threads (0 there) at warp.cu:30 (PTX line ");
  CHECK_CONTAINS(report(4), "a warp operation with mask ffffffff after lanes");
}

}  // namespace

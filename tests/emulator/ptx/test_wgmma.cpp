// wgmma.ptx: matrices laid out by plain formulas for every swizzle, against plain loops.

#include <cmath>
#include <cstring>
#include <random>

#include "kernels.h"
#include "rounding.h"

namespace {

using namespace selftest;

constexpr int kRows = 64, kColumns = 16, kDepth = 16;
constexpr uint32_t kBytes = 12288, kStartOfB = 8192;  // of shared memory; the fragments of A follow

enum class Swizzle { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };
enum : uint32_t {
  kShared,
  kTransposed,
  kRegisters,
  kWrittenTooEarly,
  kNotShown,
  kNoFence,
  kNoWait,
  kWaitOfThree,
  kLastWaitOfThree,
  kDescriptorOfWarp,
  kDescriptorOfLane,
  kSumInFlight,
  kFragmentInFlight,
  kUseWithoutFence,
  kRegistersOfThree,
};

// A matrix of lines: 16 bytes of it stay together, of a line, or of 8 lines where it is transposed.
// Tiles of 8 x 8 lie 8 x `width` bytes apart along the lines, or along the depth if transposed.
struct Layout {
  Swizzle swizzle;
  bool transposed;

  uint32_t width() const {
    switch (swizzle) {
      case Swizzle::k128: return 128;
      case Swizzle::k64: return 64;
      case Swizzle::k32: return 32;
      default: return 16;
    }
  }
  // Between tiles in the direction that 16 bytes run in, where a swizzle's width ends; and across.
  uint32_t along() const { return 2 * across(); }
  uint32_t across() const { return 8 * width(); }

  uint32_t offset(int line, int depth) const {
    int const x = transposed ? line : depth, y = transposed ? depth : line;
    uint32_t const in_row = width() / 2;
    uint32_t at = uint32_t(x) % in_row * 2 + uint32_t(y % 8) * width();
    if (swizzle == Swizzle::kNone && !transposed) {
      at += uint32_t(y / 8) * 128 + uint32_t(x) / in_row * 2048;
    } else {
      at += uint32_t(y / 8) * across() + uint32_t(x) / in_row * along();
    }
    uint32_t const chunks = width() / 16;
    return at ^ ((at / 128) % chunks) * 16;
  }

  uint64_t descriptor(uint32_t start) const {
    uint64_t leading = along(), stride = across();
    if (swizzle == Swizzle::kNone && !transposed) leading = 2048, stride = 128;
    if (swizzle == Swizzle::kNone && transposed) std::swap(leading, stride);
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | uint64_t(swizzle) << 62;
  }
};

struct Problem {
  f16 a[kRows][kDepth], b[kColumns][kDepth];

  Problem() {
    std::mt19937 generator(11);
    std::normal_distribution<float> normal;
    for (auto& row : a) {
      for (f16& x : row) x = round_to<f16>(normal(generator), Mode::kNearest);
    }
    for (auto& row : b) {
      for (f16& x : row) x = round_to<f16>(normal(generator), Mode::kNearest);
    }
  }

  // Shared memory, and four registers of A for each thread.
  std::vector<uint32_t> laid_out(Layout layout) const {
    std::vector<uint32_t> words((kBytes + 128 * 16) / 4, 0x7fff7fff);
    auto* const bytes = reinterpret_cast<char*>(words.data());
    for (int k = 0; k < kDepth; ++k) {
      for (int i = 0; i < kRows; ++i) std::memcpy(bytes + layout.offset(i, k), &a[i][k], 2);
      for (int j = 0; j < kColumns; ++j) {
        std::memcpy(bytes + kStartOfB + layout.offset(j, k), &b[j][k], 2);
      }
    }
    for (int t = 0; t < 128; ++t) {
      for (int i = 0; i < 4; ++i) {
        int const row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
        std::memcpy(bytes + kBytes + t * 16 + i * 4, &a[row][k], 4);
      }
    }
    return words;
  }

  double expected(int row, int col) const {
    double sum = 0;
    for (int k = 0; k < kDepth; ++k) sum += double(wide(a[row][k])) * wide(b[col][k]);
    return sum;
  }
};

std::string run(Layout layout, uint32_t mode, std::vector<float>& sums, int threads = 128) {
  std::vector<uint32_t> in = Problem().laid_out(layout);
  sums.assign(128 * 8, 0.f);
  auto const from = writable(in, "in");
  auto const to = writable(sums);
  return launch_kernel("multiply_groups", 1, threads, 0, in.data(), sums.data(),
                       layout.descriptor(0), layout.descriptor(kStartOfB), mode);
}

void check(Layout layout, uint32_t mode, double factor) {
  std::vector<float> sums;
  CHECK_EQUAL(run(layout, mode, sums), "");
  Problem const problem;
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < 8; ++i) {
      int const row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
      int const col = i / 4 * 8 + t % 4 * 2 + i % 2;
      double const want = factor * problem.expected(row, col);
      CHECK(std::fabs(sums[size_t(8 * t + i)] - want) < 1e-4);
    }
  }
}

constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128};

TEST(products_of_groups_of_warps) {
  for (Swizzle swizzle : kSwizzles) {
    check({swizzle, false}, kShared, 2);
    check({swizzle, true}, kTransposed, -2);
    check({swizzle, false}, kRegisters, 2);
  }
}

TEST(faults_of_products_of_groups) {
  std::vector<float> sums;
  Layout const layout{Swizzle::k128, false};
  CHECK_CONTAINS(run(layout, kWrittenTooEarly, sums),
                 "write while a bulk copy or wgmma reads there");
  CHECK_CONTAINS(run(layout, kNotShown, sums),
                 "by wgmma, without a fence.proxy.async after the write of");
  CHECK_CONTAINS(run(layout, kNoFence, sums), "wgmma without a wgmma.fence after");
  CHECK_CONTAINS(run(layout, kNoWait, sums), "wgmma: the warp ends without a wait for it");
  CHECK_CONTAINS(run(layout, kWaitOfThree, sums), "the warps of a group of four part");
  CHECK_CONTAINS(run(layout, kLastWaitOfThree, sums), "only 3 warps of a group of four");
  CHECK_CONTAINS(run(layout, kDescriptorOfWarp, sums), "other descriptors than its group of four");
  CHECK_CONTAINS(run(layout, kDescriptorOfLane, sums), "other descriptors or scales than lane 0");
  CHECK_CONTAINS(run(layout, kSumInFlight, sums), "comes to %f3 before the wait");
  CHECK_CONTAINS(run(layout, kFragmentInFlight, sums), "comes to %r12 before the wait");
  CHECK_CONTAINS(run(layout, kUseWithoutFence, sums), "wgmma without a wgmma.fence after");
  CHECK_CONTAINS(run(layout, kRegistersOfThree, sums), "the warps of a group of four part");
  CHECK_CONTAINS(run(layout, kShared, sums, 96), "is in no group of four");
}

}  // namespace

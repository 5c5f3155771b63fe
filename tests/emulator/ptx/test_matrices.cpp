// matrices.ptx: fragments and products against plain loops over rows, columns and depth.

#include <cmath>
#include <cstring>
#include <random>

#include "kernels.h"
#include "rounding.h"

namespace {

using namespace selftest;

uint32_t pair(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

TEST(matrices_from_shared_memory) {
  uint16_t element[4][8][8];
  for (int m = 0; m < 4; ++m) {
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 8; ++j) element[m][i][j] = uint16_t(m * 1000 + i * 10 + j);
    }
  }
  std::vector<uint32_t> in(128), out(32 * 12);
  std::memcpy(in.data(), element, sizeof(element));
  auto const from = writable(in, "in");
  auto const to = writable(out);
  CHECK_EQUAL(launch_kernel("load_all", 1, 32, 0, in.data(), out.data()), "");
  for (int l = 0; l < 32; ++l) {
    int const i = l / 4, j = l % 4 * 2;
    auto const plain = [&](int m) { return pair(element[m][i][j], element[m][i][j + 1]); };
    auto const turned = [&](int m) { return pair(element[m][j][i], element[m][j + 1][i]); };
    uint32_t const want[12] = {plain(0),  plain(1),  plain(2), plain(3), turned(0), turned(1),
                               turned(2), turned(3), plain(0), plain(1), turned(0), turned(0)};
    for (int k = 0; k < 12; ++k) CHECK_EQUAL(out[size_t(12 * l + k)], want[k]);
  }
}

TEST(matrices_to_shared_memory) {
  std::vector<uint32_t> in(128), out(128);
  for (uint32_t i = 0; i < 128; ++i) in[i] = pair(uint16_t(2 * i), uint16_t(2 * i + 1));
  auto const from = writable(in, "in");
  auto const to = writable(out);
  enum : uint32_t { kFour, kTransposed, kOne, kTooEarly, kMisaligned };
  for (uint32_t mode : {kFour, kTransposed, kOne}) {
    emu::reset_counters();
    CHECK_EQUAL(launch_kernel("store_all", 1, 32, 0, in.data(), out.data(), mode), "");
    CHECK_EQUAL(emu::counters().stmatrix.wavefronts, mode == kOne ? 1u : 4u);
    for (uint32_t row = 0; row < 32; ++row) {
      for (uint32_t col = 0; col < 8; ++col) {
        uint16_t const got = uint16_t(out[row * 4 + col / 2] >> 16 * (col % 2));
        uint32_t const i = row % 8, m = row / 8;
        auto const element = [&](uint32_t r, uint32_t c) {
          return uint16_t(in[(4 * r + c / 2) * 4 + m] >> 16 * (c % 2));
        };
        uint32_t const untouched = col % 2 == 0 ? row : 0;  // the row's number, in words
        CHECK_EQUAL(got, mode == kOne && m > 0 ? untouched
                         : mode == kTransposed ? element(col, i)
                                               : element(i, col));
      }
    }
  }
  CHECK_CONTAINS(launch_kernel("store_all", 1, 32, 0, in.data(), out.data(), kTooEarly),
                 "read without a __syncwarp after the write of warp 0 (stmatrix)");
  CHECK_CONTAINS(launch_kernel("store_all", 1, 32, 0, in.data(), out.data(), kMisaligned),
                 "not 16-byte aligned");
}

// A problem of 16 x 8 x 16 and its fragments, as the PTX ISA lays them out.
template <class Half>
struct Product {
  Half a[16][16], b[16][8];
  float c[16][8];

  explicit Product(int depth) {
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    for (auto& row : a) {
      for (int k = 0; k < 16; ++k) row[k] = k < depth ? number(normal(generator)) : Half{0};
    }
    for (auto& row : b) {
      for (Half& x : row) x = number(normal(generator));
    }
    for (auto& row : c) {
      for (float& x : row) x = normal(generator);
    }
  }

  static Half number(float x) { return round_to<Half>(x, Mode::kNearest); }

  std::vector<uint32_t> fragments(bool halves_sum = false) const {
    std::vector<uint32_t> all(32 * 12);
    for (int l = 0; l < 32; ++l) {
      int const row = l / 4, col = l % 4 * 2;
      uint32_t* const to = &all[size_t(12 * l)];
      for (int i = 0; i < 4; ++i) {
        Half const* const from = &a[row + 8 * (i % 2)][col + 8 * (i / 2)];
        to[i] = pair(from[0].bits, from[1].bits);
      }
      for (int i = 0; i < 4; ++i) {
        float const x = c[row + 8 * (i / 2)][col + i % 2];
        if (halves_sum) {
          to[4 + i / 2] |= uint32_t(round_to<f16>(x, Mode::kNearest).bits) << 16 * (i % 2);
        } else {
          std::memcpy(&to[4 + i], &x, 4);
        }
      }
      for (int i = 0; i < 2; ++i) {
        to[8 + i] = pair(b[col + 8 * i][row].bits, b[col + 8 * i + 1][row].bits);
      }
    }
    return all;
  }

  double expected(int row, int col) const {
    double sum = c[row][col];
    for (int k = 0; k < 16; ++k) sum += double(wide(a[row][k])) * wide(b[k][col]);
    return sum;
  }
};

template <class Half, class... Extra>
void check_product(char const* kernel, int depth, Extra... extra) {
  Product<Half> const product(depth);
  std::vector<uint32_t> in = product.fragments();
  std::vector<float> out(32 * 4);
  auto const from = writable(in, "in");
  auto const to = writable(out);
  CHECK_EQUAL(launch_kernel(kernel, 1, 32, 0, in.data(), out.data(), extra...), "");
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      double const want = product.expected(l / 4 + 8 * (i / 2), l % 4 * 2 + i % 2);
      CHECK(std::fabs(out[size_t(4 * l + i)] - want) < 1e-5);
    }
  }
}

TEST(products_of_halves) { check_product<f16>("multiply_k16", 16, 0u); }
TEST(products_of_bfloats) { check_product<bf16>("multiply_k16", 16, 1u); }
TEST(products_of_depth_8) { check_product<f16>("multiply_k8", 8); }

TEST(sums_in_halves) {
  Product<f16> const product(16);
  std::vector<uint32_t> in = product.fragments(true), out(32 * 4);
  auto const from = writable(in, "in");
  auto const to = writable(out);
  CHECK_EQUAL(launch_kernel("multiply_halves", 1, 32, 0, in.data(), out.data()), "");
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      int const row = l / 4 + 8 * (i / 2), col = l % 4 * 2 + i % 2;
      f16 const got{uint16_t(out[size_t(4 * l + i / 2)] >> 16 * (i % 2))};
      // c has been rounded, too.
      CHECK(std::fabs(double(wide(got)) - product.expected(row, col)) < 1e-2);
    }
  }
}

TEST(faults_of_matrices) {
  CHECK_CONTAINS(launch_kernel("multiply_apart", 1, 32, 0), "an .aligned operation, which lane");
  CHECK_CONTAINS(launch_kernel("misplaced_rows", 1, 32, 0, 8u), "is not 16-byte aligned");
  CHECK_CONTAINS(launch_kernel("misplaced_rows", 1, 32, 0, 1024u),
                 "is 1024 bytes into 1024 bytes of shared memory");
  CHECK_CONTAINS(launch_kernel("misplaced_rows", 1, 31, 0, 0u), "the warp has only lanes");
}

}  // namespace

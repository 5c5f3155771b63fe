// Unit tests of the pieces of csrc/cpu that are compiled once per instruction-set level, here at
// the level of the compiler's default flags. test_cpu_forward.cpp runs all levels as a whole.

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#define FA2_CPU_LEVEL unit_test
#include "check.h"
#include "core/dropout.h"
#include "cpu/level/elements.h"
#include "cpu/level/exp2.h"
#include "cpu/level/pack.h"
#include "cpu/level/scores.h"
#include "cpu/level/simd.h"

namespace {

using namespace fa2;
using namespace fa2::cpu::unit_test;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
T first_lane(Vec<T> v) {
  return v[0];
}

// Largest relative error of exp2<T, kDegree> on [-120, 0].
template <class T, int kDegree>
double exp2_error() {
  double worst = 0;
  for (int i = 0; i <= 40000; ++i) {
    T const x = T(-0.003) * T(i);
    double const exact = std::exp2(double(x));
    double const got = first_lane<T>(cpu::unit_test::exp2<T, kDegree>(broadcast<T>(x)));
    worst = std::fmax(worst, std::fabs(got / exact - 1));
  }
  return worst;
}

TEST(exp2_is_accurate) {
  EXPECT((exp2_error<float, 4>()) < 3.2e-6);
  EXPECT((exp2_error<float, 6>()) < 1.5e-7);
  EXPECT((exp2_error<double, 11>()) < 4e-16);
}

TEST(exp2_of_special_values) {
  auto const exp2_of = [](float x) {
    return first_lane<float>(cpu::unit_test::exp2<float, 4>(broadcast(x)));
  };
  EXPECT_EQ(exp2_of(0.f), 1.f);
  EXPECT_EQ(exp2_of(-kInf), 0.f);
  EXPECT_EQ(exp2_of(-1000.f), 0.f);
  EXPECT_EQ(exp2_of(std::numeric_limits<float>::lowest()), 0.f);
  EXPECT(std::isnan(exp2_of(kNan)));
}

TEST(tanh_is_accurate_near_and_far_from_zero) {
  for (double x = 1e-8; x < 200; x *= 1.3) {
    for (double const sign : {-1.0, 1.0}) {
      float const narrow = float(sign * x);
      double const got32 = first_lane<float>(cpu::unit_test::tanh<float>(broadcast(narrow)));
      double const got64 = first_lane<double>(cpu::unit_test::tanh<double>(broadcast(sign * x)));
      EXPECT(std::fabs(got32 / std::tanh(double(narrow)) - 1) < 5e-7) << narrow;
      EXPECT(std::fabs(got64 / std::tanh(sign * x) - 1) < 1e-15) << x;
    }
  }
  EXPECT(std::isnan(first_lane<float>(cpu::unit_test::tanh<float>(broadcast(kNan)))));
}

template <class T>
void check_transpose_and_sum() {
  constexpr int kSize = kLanes<T>;
  Vec<T> m[kSize];
  Vec<T> sums[kSize];
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) m[i][j] = sums[i][j] = T(100 * i + j);
  }
  transpose<T>(m);
  Vec<T> const total = sum_lanes<T>(sums);
  for (int i = 0; i < kSize; ++i) {
    EXPECT_EQ(total[i], T(100 * i * kSize + kSize * (kSize - 1) / 2));
    for (int j = 0; j < kSize; ++j) EXPECT_EQ(m[i][j], T(100 * j + i));
  }
}

TEST(transpose_and_sum_of_lanes) {
  check_transpose_and_sum<float>();
  check_transpose_and_sum<double>();
}

// The value of a half by its definition.
double half_value(uint16_t bits) {
  double const sign = bits & 0x8000 ? -1 : 1;
  int const exponent = (bits >> 10) & 31;
  int const mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? kNan : sign * kInf;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

template <class E>
uint16_t narrowed(float x) {
  std::array<uint16_t, kLanes<float>> out;
  E::narrow(out.data(), broadcast(x));
  return out[0];
}

TEST(every_half_widens_and_narrows) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    std::array<uint16_t, kLanes<float>> in;
    in.fill(uint16_t(bits));
    float const wide = first_lane<float>(Float16::widen(in.data()));
    double const exact = half_value(uint16_t(bits));
    EXPECT((std::isnan(wide) && std::isnan(exact)) || wide == exact) << bits;
    if (std::isnan(wide)) continue;
    EXPECT_EQ(narrowed<Float16>(wide), bits);
  }
  EXPECT(std::isnan(half_value(narrowed<Float16>(kNan))));
}

TEST(narrowing_rounds_to_nearest_even) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    double const low = half_value(bits);
    double const high = half_value(uint16_t(bits + 1));
    float const middle = float((low + high) / 2);
    EXPECT_EQ(narrowed<Float16>(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(narrowed<Float16>(std::nextafter(middle, 0.f)), bits);
    EXPECT_EQ(narrowed<Float16>(std::nextafter(middle, kInf)), bits + 1);
  }
  EXPECT_EQ(narrowed<Float16>(65519.f), 0x7bff);
  EXPECT_EQ(narrowed<Float16>(65520.f), 0x7c00);
  EXPECT_EQ(narrowed<Float16>(-1e30f), 0xfc00);
  EXPECT_EQ(narrowed<BFloat16>(1.00390625f), 0x3f80);  // ties to even, down and up
  EXPECT_EQ(narrowed<BFloat16>(1.01171875f), 0x3f82);
  EXPECT_EQ(narrowed<BFloat16>(-kInf), 0xff80);
  EXPECT_EQ(narrowed<BFloat16>(kNan), 0x7fc0);
}

TEST(queries_and_outputs_survive_the_layout) {
  constexpr int kSize = kLanes<float>;
  for (int const head_dim : {1, 3, 4, 7, 16, 33}) {
    int const padded = round_up(head_dim, kSize);
    std::vector<float> rows(kSize * head_dim);
    std::vector<float> back(kSize * head_dim + 1, kNan);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = float(i + 1);
    std::array<float const*, kSize> from;
    std::array<float*, kSize> to;
    for (int i = 0; i < kSize; ++i) {
      from[i] = &rows[i * head_dim];
      to[i] = &back[i * head_dim];
    }
    std::vector<float> packed(padded * kSize);
    pack_queries<Float32>(packed.data(), kSize, from.data(), head_dim);
    EXPECT_EQ(packed[(head_dim - 1) * kSize + 1], rows[2 * head_dim - 1]);
    unpack_outputs<Float32>(to.data(), kSize, packed.data(), kSize, broadcast(2.f), head_dim);
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(back[i], 2 * rows[i]);
    EXPECT(std::isnan(back.back())) << "written past the end";
  }
}

template <class E>
void check_dropout() {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  constexpr int64_t kSeed = -1234567890123;
  constexpr int64_t kOffset = (int64_t(7) << 33) + 5;
  Tile<E> tile = {};
  for (int i = 0; i < kSize; ++i) {
    tile.row[i] = Uint<Real>(1000003 * i + 17);
    tile.batch_head[i] = Uint<Real>(3 * i + 1);
  }
  for (int32_t const first_col : {0, 1, 6, 27}) {
    DropoutRule const rule{dropout_keep_threshold(0.4f),
                           uint32_t(kOffset) ^ uint32_t(kOffset >> 32), uint64_t(kSeed), first_col};
    for (int const first : {0, 8, 40, 72}) {
      for (int const num_keys : {1, 2, 9, 32, 50}) {
        std::vector<Real> probs((num_keys + 3) / 4 * 4 * kSize, Real(1));
        drop<E, 1>(rule, tile, first, num_keys, probs.data());
        for (int key = 0; key < num_keys; ++key) {
          int32_t const col = first_col + first + key;
          for (int i = 0; i < kSize; ++i) {
            uint32_t const bits = dropout_bits(kSeed, kOffset, uint32_t(tile.batch_head[i]),
                                               int32_t(tile.row[i]), col);
            EXPECT_EQ(probs[key * kSize + i], Real(bits < rule.keep_threshold));
          }
        }
      }
    }
  }
}

TEST(dropout_agrees_with_core) {
  check_dropout<Float32>();
  check_dropout<Float64>();
}

}  // namespace

#pragma once

// Operands for tests of instructions: edge cases of each type, and random numbers.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <tuple>
#include <type_traits>
#include <vector>

namespace selftest {

// Bits of numbers that C++ has no type for.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
struct f16x2 {
  f16 low, high;
};
struct bf16x2 {
  bf16 low, high;
};

inline float wide(f16 x) {
  int const exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float const size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                     : exponent == 0 ? std::ldexp(float(fraction), -24)
                                     : std::ldexp(float(fraction + 1024), exponent - 25);
  return x.bits >> 15 ? -size : size;
}
inline float wide(bf16 x) {
  uint32_t const bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The same number, or both NaN.
template <class T>
bool alike(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) && std::isnan(b)) return true;
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}
inline bool alike(f16 a, f16 b) {
  return a.bits == b.bits || (std::isnan(wide(a)) && std::isnan(wide(b)));
}
inline bool alike(bf16 a, bf16 b) {
  return a.bits == b.bits || (std::isnan(wide(a)) && std::isnan(wide(b)));
}
inline bool alike(f16x2 a, f16x2 b) { return alike(a.low, b.low) && alike(a.high, b.high); }
inline bool alike(bf16x2 a, bf16x2 b) { return alike(a.low, b.low) && alike(a.high, b.high); }

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
std::vector<T> edge_cases() {
  std::vector<T> values;
  auto const add = [&](std::initializer_list<uint64_t> list) {
    for (uint64_t bits : list) values.push_back(from_bits<T>(bits));
  };
  if constexpr (std::is_same_v<T, bool>) {
    return {false, true};
  } else if constexpr (std::is_same_v<T, float>) {
    add({0,          0x80000000, 1,          0x80000001, 0x007fffff, 0x00800000, 0x3f800000,
         0xbf800000, 0x3f000000, 0x3fc00000, 0x40200000, 0xc0200000, 0x4b000001, 0x4f000000,
         0xcf000000, 0x4f800000, 0x5f000000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
         0x477fefff, 0x477ff000, 0x3f801000, 0x3f808000, 0x3f818000});
  } else if constexpr (std::is_same_v<T, double>) {
    for (double x : {0.,
                     -0.,
                     1.,
                     -1.,
                     0.5,
                     1.5,
                     2.5,
                     -2.5,
                     1e-320,
                     2147483647.5,
                     -2147483649.,
                     4294967296.,
                     9.3e18,
                     -9.3e18,
                     1.9e19,
                     1e300,
                     1e-300,
                     double(INFINITY),
                     -double(INFINITY),
                     double(NAN),
                     1.0000000596046448,
                     0.1}) {
      values.push_back(x);
    }
  } else if constexpr (std::is_same_v<T, f16>) {
    add({0, 0x8000, 1, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x3800, 0x3e00, 0x7bff, 0xfbff, 0x7c00,
         0xfc00, 0x7e00, 0x1400, 0x3c01});
  } else if constexpr (std::is_same_v<T, bf16>) {
    add({0, 0x8000, 1, 0x007f, 0x0080, 0x3f80, 0xbf80, 0x3f00, 0x3fc0, 0x7f7f, 0xff7f, 0x7f80,
         0xff80, 0x7fc0, 0x3b80, 0x3f81});
  } else if constexpr (std::is_integral_v<T>) {
    constexpr int bits = 8 * sizeof(T);
    add({0,
         1,
         2,
         3,
         7,
         8,
         15,
         16,
         31,
         32,
         33,
         63,
         64,
         255,
         256,
         0x5555555555555555,
         0x123456789abcdef0,
         ~uint64_t(0),
         ~uint64_t(1),
         uint64_t(1) << (bits - 1),
         (uint64_t(1) << (bits - 1)) - 1,
         (uint64_t(1) << (bits - 1)) + 1});
  }
  return values;
}

template <class T>
T random_value(std::mt19937_64& generator) {
  uint64_t const bits = generator() >> (generator() % 4 == 0 ? generator() % 60 : 0);
  if constexpr (std::is_same_v<T, bool>) {
    return bits & 1;
  } else if constexpr (std::is_floating_point_v<T>) {
    // Two in three near 1, so that sums and roundings are of interest.
    if (generator() % 3 == 0) return from_bits<T>(bits);
    return T(std::ldexp(double(int64_t(generator())) * 0x1p-63, int(generator() % 40) - 16));
  } else if constexpr (std::is_same_v<T, f16x2> || std::is_same_v<T, bf16x2>) {
    using Half = decltype(T::low);
    return {random_value<Half>(generator), random_value<Half>(generator)};
  } else if constexpr (std::is_same_v<T, bf16>) {
    if (generator() % 4 == 0) return from_bits<T>(bits);
    return {uint16_t((generator() & 0x8000) | (0x3800 + generator() % 0x0f00))};
  } else {
    return from_bits<T>(bits);
  }
}

// All pairs of edge cases in the first two operands, with random ones in the others; then rows of
// random operands, among which edge cases turn up too.
template <class... T>
std::vector<std::tuple<T...>> combinations() {
  static_assert(sizeof...(T) >= 1);
  using Row = std::tuple<T...>;
  std::mt19937_64 generator(12345);
  auto const any = [&]<class U>(U const*) {
    static std::vector<U> const edges = edge_cases<U>();
    if (!edges.empty() && generator() % 4 == 0) return edges[generator() % edges.size()];
    return random_value<U>(generator);
  };
  std::vector<Row> rows;
  auto const random_row = [&] { return Row{any(static_cast<T const*>(nullptr))...}; };
  for (auto const& a : edge_cases<std::tuple_element_t<0, Row>>()) {
    Row row = random_row();
    std::get<0>(row) = a;
    if constexpr (sizeof...(T) > 1) {
      for (auto const& b : edge_cases<std::tuple_element_t<1, Row>>()) {
        row = random_row();
        std::get<0>(row) = a;
        std::get<1>(row) = b;
        rows.push_back(row);
      }
    } else {
      rows.push_back(row);
    }
  }
  constexpr int kRandomRows = 1500;
  for (int i = 0; i < kRandomRows; ++i) rows.push_back(random_row());
  return rows;
}

}  // namespace selftest

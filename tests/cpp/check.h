#pragma once

// The few words that the C++ unit tests are written in. A file holds TEST(name) { ... } bodies;
// a failed EXPECT prints where and why, and the test goes on. main.cpp runs them all.

#include <cmath>
#include <iostream>
#include <vector>

namespace fa2::testing {

struct Test {
  char const* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(char const* name, void (*body)()) { tests().push_back({name, body}); }
};

// Prints the first few failures of a run in full; a broken loop would print thousands.
inline std::ostream& fail(char const* file, int line, char const* what) {
  static std::ostream silent(nullptr);
  constexpr int kMaxPrinted = 20;
  if (++failures() > kMaxPrinted) return silent;
  return std::cerr << '\n' << file << ':' << line << ": " << what << ' ';
}

// Equal, both NaN, or within `tolerance` relative to the larger magnitude (at least 1).
inline bool near(double a, double b, double tolerance) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return true;
  double const scale = std::fmax(1.0, std::fmax(std::fabs(a), std::fabs(b)));
  return std::fabs(a - b) <= tolerance * scale;
}

}  // namespace fa2::testing

#define TEST(name)                                                            \
  static void name();                                                         \
  static ::fa2::testing::Registration const name##_registration{#name, name}; \
  static void name()

// More may be streamed into a failed expectation: EXPECT(a < b) << "a is " << a;
#define EXPECT(condition) \
  if (condition) {        \
  } else                  \
    ::fa2::testing::fail(__FILE__, __LINE__, #condition)
#define EXPECT_EQ(a, b) EXPECT((a) == (b)) << "(" << (a) << " and " << (b) << ") "
#define EXPECT_NEAR(a, b, tolerance) \
  EXPECT(::fa2::testing::near(a, b, tolerance)) << "(" << (a) << " and " << (b) << ") "

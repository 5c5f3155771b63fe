// approx=worst: off by what the PTX ISA allows and no more, up and down, the same for each operand.

#include "instruction.h"

namespace {

using namespace selftest;

struct Case {
  char const* opcode;
  double (*exact)(double);
  double bound;
  float least, most;  // of the operands
  bool is_relative;
};

double reciprocal(double x) { return 1 / x; }
double reciprocal_root(double x) { return 1 / std::sqrt(x); }

// The bounds of the PTX ISA; the kernels are those of test_floats.cpp.
Case const cases[] = {
    {"ex2.approx.f32", std::exp2, std::exp2(-22), -20, 20, true},
    {"lg2.approx.f32", std::log2, std::exp2(-22), 0.51f, 1.99f, false},
    {"lg2.approx.f32", std::log2, std::exp2(-22), 2.1f, 1e6f, true},
    {"rcp.approx.ftz.f32", reciprocal, std::exp2(-23), 0.01f, 100.f, true},
    {"rsqrt.approx.f32", reciprocal_root, std::exp2(-22.9), 0.01f, 100.f, true},
    {"tanh.approx.f32", std::tanh, std::exp2(-11), -3, 3, true},
};

std::vector<float> run(Case const& c, std::vector<uint64_t> const& operands) {
  std::vector<float> results;
  for (uint64_t bits : run_instruction(c.opcode, operands)) {
    results.push_back(from_bits<float>(bits));
  }
  return results;
}

TEST(worst_approximations_keep_to_their_bounds) {
  constexpr int kCount = 2000;
  for (Case const& c : cases) {
    std::vector<float> x(kCount);
    std::vector<uint64_t> operands;
    for (int i = 0; i < kCount; ++i) {
      x[size_t(i)] = c.least + (c.most - c.least) * float(i) / float(kCount);
      operands.insert(operands.end(), {to_bits(x[size_t(i)]), 0, 0, 0});
    }
    std::vector<float> const near = run(c, operands);
    WithOptions const options({.approximations = emu::Approximations::kWorst});
    std::vector<float> const far = run(c, operands);
    int up = 0, down = 0, beyond = 0;
    double furthest = 0;
    for (size_t i = 0; i < kCount; ++i) {
      double const exact = c.exact(x[i]);
      double const bound = c.bound * (c.is_relative ? std::fabs(exact) : 1.);
      double const error = (far[i] - exact) / bound;
      beyond += std::fabs(error) > 1;
      up += far[i] > near[i];
      down += far[i] < near[i];
      furthest = std::fmax(furthest, std::fabs(error));
    }
    CHECK_EQUAL(beyond, 0);
    CHECK(furthest > 0.9);
    CHECK(up > kCount / 5);
    CHECK(down > kCount / 5);
    CHECK(run(c, operands) == far);
    WithOptions const other_seed({.seed = 2, .approximations = emu::Approximations::kWorst});
    CHECK(run(c, operands) != far);
  }
}

TEST(worst_approximations_have_the_special_values) {
  WithOptions const options({.approximations = emu::Approximations::kWorst});
  auto const one = [](Case const& c, float x) { return run(c, {to_bits(x), 0, 0, 0})[0]; };
  CHECK_EQUAL(one(cases[0], 0.f), 1.f);
  CHECK_EQUAL(one(cases[0], -0.f), 1.f);
  CHECK_EQUAL(one(cases[0], -INFINITY), 0.f);
  CHECK_EQUAL(one(cases[0], INFINITY), INFINITY);
  CHECK(std::isnan(one(cases[0], NAN)));
  CHECK_EQUAL(one(cases[1], 0.f), -INFINITY);
  CHECK_EQUAL(one(cases[3], INFINITY), 0.f);
  CHECK_EQUAL(one(cases[5], INFINITY), 1.f);
  CHECK_EQUAL(one(cases[5], 0.f), 0.f);
}

}  // namespace

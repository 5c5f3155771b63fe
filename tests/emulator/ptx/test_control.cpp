// control.ptx: branches, calls, local memory, parameters, variables, and what reports say.

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace {

using namespace selftest;

std::vector<uint32_t> numbers(size_t n) { return std::vector<uint32_t>(n, 12345); }

TEST(loops) {
  auto out = numbers(64);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("sum_of_odd", 1, 64, 0, out.data()), "");
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQUAL(out[i], i * i);
}

TEST(tables_of_branches) {
  auto out = numbers(32);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("by_table", 1, 32, 0, out.data()), "");
  uint32_t const want[4] = {1000, 1001, 1002, 1000};
  for (uint32_t i = 0; i < 32; ++i) CHECK_EQUAL(out[i], want[i % 4]);
  CHECK_CONTAINS(launch_kernel("bad_table", 1, 32, 0, out.data()), "no target 2");
}

TEST(calls_recurse) {
  auto out = numbers(16);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("fibonacci_numbers", 1, 16, 0, out.data()), "");
  uint32_t a = 0, b = 1;
  for (uint32_t i = 0; i < 16; ++i) {
    CHECK_EQUAL(out[i], a);
    b = a + b;
    a = b - a;
  }
}

TEST(exit_in_a_function_ends_the_thread) {
  auto out = numbers(32);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("some_stop", 1, 32, 0, out.data()), "");
  for (uint32_t i = 0; i < 32; ++i) CHECK_EQUAL(out[i], i <= 7 ? 1u : 12345u);
}

TEST(local_memory) {
  auto out = numbers(8);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("local_array", 1, 8, 0, out.data(), 3u), "");
  for (uint32_t i = 0; i < 8; ++i) CHECK_EQUAL(out[i], 10 * (i + 3));
  // The last element has not been written.
  CHECK_EQUAL(launch_kernel("local_array", 1, 1, 0, out.data(), 15u), "");
  CHECK_EQUAL(out[0], ~0u);
  std::string const report = launch_kernel("local_array", 1, 1, 0, out.data(), 16u);
  CHECK_CONTAINS(report, "out of bounds: 4 bytes at local memory + 64, of 64");
  CHECK_CONTAINS(report, "at control.cu:77 (PTX line ");
  CHECK_CONTAINS(launch_kernel("local_array", 1, 1, 0, out.data(), 70000u), "out of bounds");
}

TEST(parameters) {
  auto out = numbers(5);
  auto const buffer = writable(out);
  struct {
    uint32_t items[6] = {1, 2, 3, 4, 5, 6};
  } block;
  uint8_t const small = 200;
  CHECK_EQUAL(launch_kernel("parameters", 1, 1, 0, out.data(), small, block, 1.5f), "");
  float number;
  std::memcpy(&number, &out[4], 4);
  CHECK_EQUAL(out[0], 200u);
  CHECK_EQUAL(out[1], 6u);
  CHECK_EQUAL(out[2], 3u);
  CHECK_EQUAL(out[3], 4u);
  CHECK_EQUAL(number, 1.5f);
}

TEST(variables_of_the_file) {
  auto out = numbers(8);
  auto const buffer = writable(out);
  WithOptions const options({.races = false});  // its threads all write the variable
  uint32_t const primes[4] = {2, 3, 5, 7};
  for (uint32_t counter : {100u, 200u}) {
    CHECK_EQUAL(launch_kernel("variables", 1, 8, 0, out.data()), "");
    for (uint32_t i = 0; i < 8; ++i) CHECK_EQUAL(out[i], primes[i % 4] + counter);
  }
}

TEST(unwritten_registers_are_poison) {
  auto out = numbers(4);
  auto const buffer = writable(out);
  CHECK_EQUAL(launch_kernel("unwritten", 1, 2, 0, out.data()), "");
  float poison;
  std::memcpy(&poison, &out[1], 4);
  CHECK_EQUAL(out[0], ~0u);
  CHECK(std::isnan(poison));
  CHECK_EQUAL(out[2], 5u);
}

TEST(unwritten_predicates_are_reported) {
  for (uint32_t way = 0; way < 5; ++way) {
    auto out = numbers(2);
    auto const buffer = writable(out);
    CHECK_EQUAL(launch_kernel("unwritten_predicate", 1, 1, 0, out.data(), way), "");
    CHECK_EQUAL(out[0], 5u);
    std::string const report = launch_kernel("unwritten_predicate", 1, 2, 0, out.data(), way);
    if (way == 0) {
      CHECK_EQUAL(report, "");
      CHECK_EQUAL(out[1], 1u);
    } else {
      CHECK_CONTAINS(report, "reads the predicate %p2, which is not written yet");
      CHECK_CONTAINS(report, "thread (1,0,0)");
    }
    if (way == 1) CHECK_CONTAINS(report, "at control.cu:30 (PTX line ");
  }
}

TEST(reports_name_source_and_ptx_lines) {
  auto out = numbers(4);
  auto const buffer = writable(out);
  std::string const report = launch_kernel("faulty", 1, 1, 0, out.data());
  CHECK_CONTAINS(report, "kernel emulator: faulty, grid (1,1,1)");
  CHECK_CONTAINS(report, "out of bounds: writes 4 bytes at out + 4096, a buffer of 16 bytes");
  CHECK_CONTAINS(report, "at inlined.h:20 < control.cu:12 (PTX line ");
  CHECK_CONTAINS(launch_kernel("trapped", 1, 1, 0, out.data()), "trap");
  CHECK_EQUAL(launch_kernel("missing", 1, 1, 0, out.data()), "cudaError (emulated)");
}

}  // namespace

#pragma once

// Tests of single instructions: INSTRUCTION("opcode", result, (operands), value) compares what the
// emulator computes with a C++ expression, for all pairs of interesting operands and many random
// ones. instruction_kernels.py makes the PTX from these lines: a kernel for each, which applies the
// instruction to the operands of each thread. An opcode with a % is the whole instruction, %d
// standing for the result and %a, %b, ... for the operands.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "../test_frame.h"
#include "ptx/types.h"
#include "values.h"

namespace selftest {

// The name of the kernel for an opcode.
inline std::string kernel_of(std::string const& opcode) {
  std::string name = "test_";
  for (char c : opcode) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

constexpr int kOperands = 4;  // of each thread; 8 bytes of memory for each

// The results of one thread for each row of operands.
std::vector<uint64_t> run_instruction(std::string const& opcode,
                                      std::vector<uint64_t> const& operands);

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class R, class... A>
void check_instruction(char const* file, int line, char const* opcode, R (*expected)(A...)) {
  std::vector<std::tuple<A...>> rows = combinations<A...>();
  std::vector<uint64_t> operands;
  for (auto const& row : rows) {
    std::vector<uint64_t> bits =
        std::apply([](auto... value) { return std::vector<uint64_t>{to_bits(value)...}; }, row);
    bits.resize(kOperands);
    operands.insert(operands.end(), bits.begin(), bits.end());
  }
  std::vector<uint64_t> const results = run_instruction(opcode, operands);
  int wrong = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    R const want = std::apply(expected, rows[i]);
    R got;
    std::memcpy(&got, &results[i], sizeof(R));
    if (alike(got, want)) continue;
    if (++wrong > 3) continue;
    std::ostringstream text;
    text << opcode << std::hex << " of";
    for (int k = 0; k < int(sizeof...(A)); ++k) text << " " << operands[i * kOperands + size_t(k)];
    text << " is " << to_bits(got) << ", expected " << to_bits(want);
    fail_at(file, line, text.str());
  }
  if (wrong > 3) fail_at(file, line, std::to_string(wrong) + " results differ");
}

}  // namespace selftest

#define INSTRUCTION_AT(line, opcode, result, parameters, ...)      \
  static result expected_##line parameters { return __VA_ARGS__; } \
  static selftest::Registration const registration_##line{         \
      opcode, [] { selftest::check_instruction(__FILE__, line, opcode, expected_##line); }};
#define INSTRUCTION_LINE(...) INSTRUCTION_AT(__VA_ARGS__)
#define INSTRUCTION(...) INSTRUCTION_LINE(__LINE__, __VA_ARGS__)

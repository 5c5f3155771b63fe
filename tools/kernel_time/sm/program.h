#pragma once

// What the simulator is told: a machine, the paths of a kernel, and the CTAs to run.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace sm {

using Cycle = int64_t;

// What an instruction occupies, or what it does.
enum class Unit {
  kNone,
  kTensor,
  kFloat,
  kInteger,
  kUniform,
  kSpecial,   // MUFU and conversions
  kShared,    // shared memory
  kLocal,     // local memory that is in L1
  kShuffle,   // through the same path as shared memory
  kConstant,  // special registers and constants by index
  kCopy,      // from global to shared memory
  kLoad,
  kStore,
  kReduce,
  kBarrier,
  kWait,    // until copies have landed
  kCommit,  // the copies so far, for such a wait
  kBranch,
};
inline constexpr std::array kUnitNames = {
    "none",     "tensor", "float", "integer", "uniform", "special", "shared", "local",  "shuffle",
    "constant", "copy",   "load",  "store",   "reduce",  "barrier", "wait",   "commit", "branch"};
inline constexpr int kUnits = kUnitNames.size();

inline constexpr int kScoreboards = 6;
inline constexpr int kNone = -1;  // of scoreboards

struct Instruction {
  Unit unit;
  int busy;           // cycles of the unit
  int shared_cycles;  // of shared memory's data path; of barriers: warps that meet, 0 for the CTA's
  int latency;
  int bytes;  // through L2
  int stall;
  bool yields;
  int result_at;  // scoreboards
  int operands_at;
  int waits_for;  // a mask
  int extra;      // of branches: taken; of waits: 256 * scoreboard + how many may be left
  int reads;      // registers that the register file has to deliver
};

struct Part {
  int path;
  int repetitions;
};

// Constants by name; see tools/kernel_time/machines.py.
class Machine {
 public:
  void set(std::string const& name, double value) { values_[name] = value; }
  double operator[](char const* name) const {
    auto const found = values_.find(name);
    if (found != values_.end()) return found->second;
    std::cerr << "no constant " << name << '\n';
    std::exit(2);
  }

 private:
  std::map<std::string, double> values_;
};

struct Program {
  Machine machine;
  std::vector<std::vector<Instruction>> paths;
  std::vector<std::vector<Part>> ctas;
  int warps = 0;  // of a CTA
  int slots = 0;  // CTAs that are resident at a time
};

inline Unit unit_of(std::string const& name) {
  for (int unit = 0; unit < kUnits; ++unit) {
    if (name == kUnitNames[unit]) return Unit(unit);
  }
  std::cerr << "no unit " << name << '\n';
  std::exit(2);
}

inline void read_instruction(std::istream& words, Program& program) {
  size_t path;
  std::string unit;
  Instruction i;
  words >> path >> unit >> i.busy >> i.shared_cycles >> i.latency >> i.bytes >> i.stall >>
      i.yields >> i.result_at >> i.operands_at >> i.waits_for >> i.extra >> i.reads;
  i.unit = unit_of(unit);
  if (program.paths.size() <= path) program.paths.resize(path + 1);
  program.paths[path].push_back(i);
}

// Lines that begin with what they tell: constant, instruction, cta, run.
inline Program read_program(std::istream& input) {
  Program program;
  for (std::string line; std::getline(input, line);) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "constant") {
      std::string name;
      double value;
      words >> name >> value;
      program.machine.set(name, value);
    } else if (kind == "instruction") {
      read_instruction(words, program);
    } else if (kind == "cta") {
      std::vector<Part> parts;
      for (Part part; words >> part.path >> part.repetitions;) parts.push_back(part);
      program.ctas.push_back(parts);
      words.clear();
    } else if (kind == "run") {
      words >> program.warps >> program.slots;
    } else {
      words.setstate(std::ios::failbit);
    }
    if (!words) {
      std::cerr << "not understood: " << line << '\n';
      std::exit(2);
    }
  }
  return program;
}

}  // namespace sm

#pragma once

// Four warps that multiply together: what they execute of wgmma and setmaxnreg must be the same
// instructions in the same order (PTX ISA: in conditional code, all threads of the warpgroup
// evaluate the condition identically).

#include <cstdint>
#include <deque>

namespace emu {

struct Warp;

inline constexpr int kWarpsOfGroup = 4;

// Descriptors of what a wgmma multiplies.
struct MatrixPair {
  uint64_t a = 0, b = 0;

  bool operator==(MatrixPair const&) const = default;
};

class Warpgroup {
 public:
  // What a warp executes. The matrices are the group's, too.
  struct Step {
    void const* site;
    MatrixPair matrices = {};
  };

  // The current warp comes to a step; the first to come decides what it is.
  void take(Step const& step);
  // All warps have ended.
  void end() const;
  void clear();

 private:
  struct Taken {
    Step step;
    int warps;  // that have come to it
  };
  std::deque<Taken> open_;  // not all warps have come to these
  uint32_t first_ = 0;      // the number of the first
  uint32_t next_[kWarpsOfGroup] = {};
};

// For the current warp.
void take_step_of_group(Warpgroup::Step const& step);

}  // namespace emu

#pragma once

// wgmma: products of matrices that lie in shared memory, by four warps together, which read them
// while threads go on.

#include <cstdint>
#include <vector>

namespace emu {

struct Warp;

// Of a warp: what its wgmmas may still be reading, in their groups.
class WgmmaQueue {
 public:
  // Offsets of 16 bytes each.
  void start(Warp& warp, std::vector<uint32_t> const& places, void const* site);
  void commit() { ++groups_; }
  // Completes all groups but the last `pending` committed ones.
  void wait(Warp& warp, int pending);
  // The warp ends.
  void end() const;
  void clear();

 private:
  struct Read {
    void const* site;
    uint32_t place;
    uint32_t group;
  };
  std::vector<Read> reads_;  // oldest first
  uint32_t groups_ = 0;      // committed so far
};

}  // namespace emu

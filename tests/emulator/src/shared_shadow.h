#pragma once

// Happens-before detector of one CTA's shared memory (FastTrack, Flanagan and Freund 2009): who
// wrote each byte last, and when each warp read it last.

#include <cstdint>
#include <vector>

namespace emu {

struct Warp;

class SharedShadow {
 public:
  static constexpr int kGranule = 16;  // bytes that are tracked as one until a part is accessed

  enum class Reader : uint8_t {
    kLane,
    kWholeWarp,  // ldmatrix: the data goes to all lanes
  };

  void reset(int shared_bytes, int num_warps);

  void read(Warp const& warp, int lane, Reader reader, uint32_t offset, uint32_t bytes,
            void const* site);
  void write(Warp const& warp, int lane, uint32_t offset, uint32_t bytes, void const* site);
  // A cp.async into these bytes has been issued; has landed.
  void issue_copy(Warp const& warp, int lane, uint32_t offset, uint32_t bytes, void const* site);
  void land_copy(Warp const& warp, int lane, uint32_t offset, uint32_t bytes);

 private:
  enum class Phase : uint8_t { kUntouched, kWritten, kInFlight };

  struct Cell {
    uint32_t tick;
    uint8_t warp;
    uint8_t lane;
    Phase phase;
    bool split;     // of a granule: the truth is in its bytes
    uint32_t site;  // of the last write; low half of its address
  };

  struct Access {
    Warp const& warp;
    int lane;
    uint32_t offset;
    void const* site;
  };

  template <class Visit>
  void for_each_cell(uint32_t offset, uint32_t bytes, bool overwrites, Visit visit);
  void split(uint32_t granule);

  void check_read(Cell& cell, uint32_t* reads, Access const& access, Reader reader);
  void check_write(Cell& cell, uint32_t* reads, Access const& access, Phase becomes);
  void report(char const* what, Cell const& cell, Access const& access);
  void report_reader(char const* what, int reader_warp, int reader_lane, Access const& access);

  int num_warps_ = 0;
  // Of granules, then of bytes. Reads hold (tick << 6 | lane) for every warp; 0: none.
  std::vector<Cell> granules_, bytes_;
  std::vector<uint32_t> granule_reads_, byte_reads_;
};

}  // namespace emu

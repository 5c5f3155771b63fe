#include "shared_shadow.h"

#include <algorithm>

#include "machine.h"
#include "report.h"

namespace emu {

namespace {

constexpr int kLaneBits = 6;
constexpr uint32_t kSeveralLanes = 32;
constexpr uint32_t kAllTogether = 33;  // read by an ldmatrix, in step with all lanes

uint32_t pack(uint32_t tick, uint32_t lane) { return tick << kLaneBits | lane; }
uint32_t tick_of(uint32_t packed) { return packed >> kLaneBits; }
uint32_t lane_of(uint32_t packed) { return packed & ((1u << kLaneBits) - 1); }

}  // namespace

void SharedShadow::reset(int shared_bytes, int num_warps) {
  size_t const granules = size_t(shared_bytes + kGranule - 1) / kGranule;
  num_warps_ = num_warps;
  granules_.assign(granules, Cell{});
  granule_reads_.assign(granules * num_warps, 0);
  bytes_.resize(granules * kGranule);  // filled when a granule is split
  byte_reads_.resize(granules * kGranule * num_warps);
}

void SharedShadow::split(uint32_t granule) {
  uint32_t const* const reads = &granule_reads_[size_t(granule) * num_warps_];
  for (uint32_t byte = granule * kGranule; byte < (granule + 1) * kGranule; ++byte) {
    bytes_[byte] = granules_[granule];
    for (int w = 0; w < num_warps_; ++w) byte_reads_[size_t(byte) * num_warps_ + w] = reads[w];
  }
  granules_[granule].split = true;
}

// Calls visit(cell, reads) for the cells of these bytes. An access that overwrites a whole granule
// makes it one again.
template <class Visit>
inline void SharedShadow::for_each_cell(uint32_t offset, uint32_t bytes, bool overwrites,
                                        Visit visit) {
  uint32_t const end = offset + bytes;
  while (offset < end) {
    uint32_t const granule = offset / kGranule;
    uint32_t const stop = std::min(end, (granule + 1) * kGranule);
    bool const whole = stop - offset == kGranule;
    Cell& cell = granules_[granule];
    uint32_t* const reads = &granule_reads_[size_t(granule) * num_warps_];
    if (!whole && !cell.split) split(granule);
    if (!cell.split) {
      visit(cell, reads);
    } else {
      for (uint32_t byte = offset; byte < stop; ++byte) {
        visit(bytes_[byte], &byte_reads_[size_t(byte) * num_warps_]);
      }
      if (whole && overwrites) {
        cell = bytes_[offset];
        cell.split = false;
        for (int w = 0; w < num_warps_; ++w) reads[w] = 0;
      }
    }
    offset = stop;
  }
}

void SharedShadow::report(char const* what, Cell const& cell, Access const& access) {
  note(access.site, "race in shared memory + %u: %s warp %d lane %d", access.offset, what,
       cell.warp, cell.lane);
}

void SharedShadow::report_reader(char const* what, int warp, int lane, Access const& access) {
  char const* const start = "race in shared memory + ";
  if (lane == int(kAllTogether)) {
    note(access.site, "%s%u: %s warp %d (ldmatrix)", start, access.offset, what, warp);
  } else if (lane == int(kSeveralLanes)) {
    note(access.site, "%s%u: %s warp %d (several lanes)", start, access.offset, what, warp);
  } else {
    note(access.site, "%s%u: %s warp %d lane %d", start, access.offset, what, warp, lane);
  }
}

inline void SharedShadow::check_read(Cell& cell, uint32_t* reads, Access const& access,
                                     Reader reader) {
  Warp const& warp = access.warp;
  if (cell.phase == Phase::kInFlight) [[unlikely]] {
    report("read while a cp.async is in flight there, issued by", cell, access);
  } else if (cell.phase == Phase::kWritten) {
    if (cell.warp == warp.index) {
      bool const same_lane = reader == Reader::kLane && cell.lane == access.lane;
      if (cell.tick == warp.tick && !same_lane) [[unlikely]] {
        report("read without a __syncwarp after the write of", cell, access);
      }
    } else if (cell.tick >= warp.known[cell.warp]) [[unlikely]] {
      report("read without a barrier after the write of", cell, access);
    }
  }
  uint32_t& last = reads[warp.index];
  uint32_t const lane = reader == Reader::kWholeWarp ? kAllTogether : uint32_t(access.lane);
  if (tick_of(last) != warp.tick || lane_of(last) == kAllTogether) {
    last = pack(warp.tick, lane);
  } else if (lane_of(last) != lane && lane != kAllTogether) {
    last = pack(warp.tick, kSeveralLanes);
  }
}

inline void SharedShadow::check_write(Cell& cell, uint32_t* reads, Access const& access,
                                      Phase becomes) {
  Warp const& warp = access.warp;
  if (cell.phase == Phase::kInFlight) [[unlikely]] {
    report("write while a cp.async is in flight there, issued by", cell, access);
  } else if (cell.phase == Phase::kWritten) {
    if (cell.warp == warp.index) {
      if (cell.tick == warp.tick && cell.lane != access.lane) [[unlikely]] {
        report("write without a __syncwarp after the write of", cell, access);
      }
    } else if (cell.tick >= warp.known[cell.warp]) [[unlikely]] {
      report("write without a barrier after the write of", cell, access);
    }
  }
  for (int w = 0; w < num_warps_; ++w) {
    uint32_t const last = reads[w];
    reads[w] = 0;
    if (last == 0) continue;
    if (w == warp.index) {
      uint32_t const lane = lane_of(last);
      if (tick_of(last) == warp.tick && lane != uint32_t(access.lane) && lane != kAllTogether)
          [[unlikely]] {
        report_reader("write without a __syncwarp after the read of", w, int(lane), access);
      }
    } else if (tick_of(last) >= warp.known[w]) [[unlikely]] {
      report_reader("write without a barrier after the read of", w, int(lane_of(last)), access);
    }
  }
  cell.tick = warp.tick;
  cell.warp = uint8_t(warp.index);
  cell.lane = uint8_t(access.lane);
  cell.phase = becomes;
  cell.site = uint32_t(uintptr_t(access.site));
}

void SharedShadow::read(Warp const& warp, int lane, Reader reader, uint32_t offset, uint32_t bytes,
                        void const* site) {
  Access const access{warp, lane, offset, site};
  for_each_cell(offset, bytes, false,
                [&](Cell& cell, uint32_t* reads) { check_read(cell, reads, access, reader); });
}

void SharedShadow::write(Warp const& warp, int lane, uint32_t offset, uint32_t bytes,
                         void const* site) {
  Access const access{warp, lane, offset, site};
  for_each_cell(offset, bytes, true, [&](Cell& cell, uint32_t* reads) {
    check_write(cell, reads, access, Phase::kWritten);
  });
}

void SharedShadow::issue_copy(Warp const& warp, int lane, uint32_t offset, uint32_t bytes,
                              void const* site) {
  Access const access{warp, lane, offset, site};
  for_each_cell(offset, bytes, true, [&](Cell& cell, uint32_t* reads) {
    check_write(cell, reads, access, Phase::kInFlight);
  });
}

void SharedShadow::land_copy(Warp const& warp, int lane, uint32_t offset, uint32_t bytes) {
  for_each_cell(offset, bytes, true, [&](Cell& cell, uint32_t*) {
    cell.phase = Phase::kWritten;
    cell.tick = warp.tick;
    cell.warp = uint8_t(warp.index);
    cell.lane = uint8_t(lane);
  });
}

}  // namespace emu

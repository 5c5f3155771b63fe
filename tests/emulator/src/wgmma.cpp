#include "wgmma.h"

#include <algorithm>
#include <cstring>

#include "collectives.h"
#include "operations.h"
#include "swizzle.h"
#include "tensor_core.h"

namespace emu {

namespace {

constexpr int kDepth = 16;
constexpr int kChunkElements = 8;
constexpr uint32_t kSignBit = 0x8000;  // of either kind of half

// A matrix in shared memory: lines, rows of A or columns of B, of elements along the depth (PTX
// ISA, "Matrix descriptor format" and "Strides").
class SharedMatrix {
 public:
  SharedMatrix(uint64_t descriptor, bool transposed)
      : start_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        width_(kWidths[descriptor >> 62]),
        transposed_(transposed) {}

  // Of an element, in shared memory.
  uint32_t offset(int line, int depth) const {
    int const major = transposed_ ? line : depth, minor = transposed_ ? depth : line;
    int const in_row = int(width_) / 2;  // elements that follow each other
    uint32_t const inner = uint32_t(major % in_row) * 2 + uint32_t(minor % 8) * width_;
    uint32_t const rows = uint32_t(minor / 8), parts = uint32_t(major / in_row);
    // Without a swizzle, the strides of a transposed matrix change places.
    bool const swapped = transposed_ && width_ == kChunkBytes;
    uint32_t const outer =
        swapped ? rows * leading_ + parts * stride_ : rows * stride_ + parts * leading_;
    return swizzled(start_ + inner + outer, width_);
  }

  // Where its chunks are, of `lines` of them from `first` on.
  void add_places(int first, int lines, std::vector<uint32_t>& places) const {
    int const line_step = transposed_ ? kChunkElements : 1;
    int const depth_step = transposed_ ? 1 : kChunkElements;
    for (int line = first; line < first + lines; line += line_step) {
      for (int k = 0; k < kDepth; k += depth_step) places.push_back(offset(line, k));
    }
  }

 private:
  static constexpr uint32_t kWidths[] = {16, 128, 64, 32};  // bytes, by kind of swizzle

  static uint32_t field(uint64_t descriptor, int bit) {
    return uint32_t(descriptor >> bit & 0x3fff) << 4;
  }

  uint32_t start_, leading_, stride_, width_;
  bool transposed_;
};

void check_descriptor(uint64_t descriptor, void const* site) {
  if ((descriptor >> 49 & 7) != 0) fail(site, "wgmma: a descriptor with a base offset");
}

void check_lanes_agree(Warp const& warp, void const* site) {
  for (int l = 1; l < kWarpSize; ++l) {
    bool const same = warp.wgmma.matrices[l] == warp.wgmma.matrices[0] &&
                      warp.wgmma.adds[l] == warp.wgmma.adds[0];
    if (!same) fail(site, "wgmma: lane %d has other descriptors or scales than lane 0", l);
  }
}

uint16_t element(SharedMatrix const& matrix, int line, int k, bool negates) {
  uint16_t bits;
  std::memcpy(&bits, shared_base + matrix.offset(line, k), sizeof(bits));
  return negates ? uint16_t(bits ^ kSignBit) : bits;
}

void check_places(std::vector<uint32_t> const& places, void const* site) {
  for (uint32_t place : places) {
    if (place + kChunkBytes > uint32_t(grid.shared_bytes)) {
      fail(site, "out of bounds: wgmma reads at shared memory + %u, of %d", place,
           grid.shared_bytes);
    }
  }
}

// The warp's 16 rows of A.
void gather_a(Warp const& warp, Wgmma const& op, uint16_t (&a)[16][16]) {
  if (op.a_in_registers) {
    for (int l = 0; l < kWarpSize; ++l) {
      for (int i = 0; i < 4; ++i) {
        uint32_t const pair = warp.mma.a[l][i] ^ (op.negates_a ? kSignBit << 16 | kSignBit : 0);
        std::memcpy(&a[l / 4 + i % 2 * 8][l % 4 * 2 + i / 2 * 8], &pair, sizeof(pair));
      }
    }
    return;
  }
  SharedMatrix const matrix(op.a, op.transposes_a);
  int const first = warp.index % kWarpsOfGroup * 16;
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) a[row][k] = element(matrix, first + row, k, op.negates_a);
  }
}

// Eight columns from `first` on; lane l has its part of them in sums[l][0..3].
void multiply_columns(uint16_t const (&a)[16][16], SharedMatrix const& matrix, Wgmma const& op,
                      int first, float* const (&sums)[kWarpSize]) {
  alignas(32) uint16_t b[16][8];
  alignas(32) float c[16][8];
  for (int k = 0; k < kDepth; ++k) {
    for (int j = 0; j < 8; ++j) b[k][j] = element(matrix, first + j, k, op.negates_b);
  }
  auto const place = [&c](int lane, int i) {
    return &c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  };
  for (int l = 0; l < kWarpSize; ++l) {
    for (int i = 0; i < 4; ++i) *place(l, i) = op.adds ? sums[l][first / 2 + i] : 0.f;
  }
  multiply_tile(a, b, c, op.type, kDepth);
  for (int l = 0; l < kWarpSize; ++l) {
    for (int i = 0; i < 4; ++i) sums[l][first / 2 + i] = *place(l, i);
  }
}

void execute(Warp& warp, Wgmma const& op, void const* site) {
  check_lanes_agree(warp, site);
  take_step_of_group({site, {op.a, op.b}});
  check_descriptor(op.b, site);
  if (!op.a_in_registers) check_descriptor(op.a, site);
  SharedMatrix const b(op.b, op.transposes_b);
  std::vector<uint32_t> places;
  b.add_places(0, op.columns, places);
  if (!op.a_in_registers) {
    SharedMatrix const a(op.a, op.transposes_a);
    a.add_places(warp.index % kWarpsOfGroup * 16, 16, places);
  }
  check_places(places, site);
  warp.wgmmas.start(warp, places, site);
  alignas(32) uint16_t a[16][16];
  gather_a(warp, op, a);
  for (int first = 0; first < op.columns; first += 8) {
    multiply_columns(a, b, op, first, warp.wgmma.sums);
  }
  ++totals.wgmma;
  totals.mma += uint64_t(op.columns / 8);
}

}  // namespace

void WgmmaQueue::start(Warp& warp, std::vector<uint32_t> const& places, void const* site) {
  for (uint32_t place : places) {
    reads_.push_back({site, place, groups_});
    if (grid.options.races) {
      warp.cta->shadow.begin_unit_read(warp, SharedShadow::kAllTogether, place, kChunkBytes, site);
    }
  }
}

void WgmmaQueue::wait(Warp& warp, int pending) {
  uint32_t const done_groups = groups_ - std::min(groups_, uint32_t(pending));
  auto const end = std::ranges::find_if(
      reads_, [done_groups](Read const& read) { return read.group >= done_groups; });
  for (auto read = reads_.begin(); read != end; ++read) {
    if (!grid.options.races) break;
    warp.cta->shadow.end_unit_read(warp, SharedShadow::kAllTogether, read->place, kChunkBytes);
  }
  reads_.erase(reads_.begin(), end);
}

void WgmmaQueue::end() const {
  if (!reads_.empty()) note(reads_.front().site, "wgmma: the warp ends without a wait for it");
}

void WgmmaQueue::clear() {
  reads_.clear();
  groups_ = 0;
}

void wgmma(void const* site, Wgmma const& op, uint32_t const* a, float* sums) {
  Warp& warp = current_warp();
  int const lane = current->lane;
  if (a != nullptr) std::memcpy(warp.mma.a[lane], a, sizeof(warp.mma.a[lane]));
  warp.wgmma.sums[lane] = sums;
  warp.wgmma.matrices[lane] = {op.a, op.b};
  warp.wgmma.adds[lane] = op.adds;
  converge(Operation::kWgmma, uint32_t(op.columns), kAllLanes, {site, true}, [&](Warp& w) {
    execute(w, op, site);
    return true;
  });
}

void wgmma_fence(void const* site) {
  converge(Operation::kWgmma, 0, kAllLanes, {site, true}, [site](Warp& warp) {
    take_step_of_group({site});
    return true;
  });
}

void wgmma_commit(void const* site) {
  converge(Operation::kWgmma, 0, kAllLanes, {site, true}, [site](Warp& warp) {
    take_step_of_group({site});
    warp.wgmmas.commit();
    return true;
  });
}

void wgmma_wait(void const* site, int pending) {
  converge(Operation::kWgmma, 0, kAllLanes, {site, true}, [site, pending](Warp& warp) {
    take_step_of_group({site});
    warp.wgmmas.wait(warp, pending);
    return true;
  });
}

}  // namespace emu

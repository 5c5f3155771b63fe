#include "masks/dense.h"

#include <algorithm>
#include <cstring>

namespace fa2::masks {
namespace {

class DenseLeaf : public Node {
 public:
  DenseLeaf(Lengths const& lengths, DenseMask const& mask) : lengths_(lengths), mask_(mask) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    first_ = place.row * kBlock;
    data_ = mask_.data + place.batch * mask_.batch_stride + place.head * mask_.head_stride +
            first_ * mask_.row_stride;
    row.extend(lengths_.cols(), Seen::kSome);
  }

  void fill_words(int32_t col, Tile& out) override {
    int32_t const rows = std::min(kBlock, lengths_.seqlen_q - first_);
    int32_t const cols = std::min(kBlock, lengths_.seqlen_k - col * kBlock);
    uint8_t const* const block = data_ + int64_t(col) * kBlock * mask_.col_stride;
    for (int32_t q = 0; q < rows; ++q) out[q] = word(block + q * mask_.row_stride, cols);
    std::fill(out.begin() + rows, out.end(), 0);
  }

 private:
  uint64_t word(uint8_t const* bytes, int32_t count) const {
    uint64_t bits = 0;
    int32_t done = 0;
    if (mask_.col_stride == 1) {
      for (; done + 8 <= count; done += 8) bits |= uint64_t(octet(bytes + done)) << done;
    }
    for (; done < count; ++done) bits |= uint64_t(bytes[done * mask_.col_stride]) << done;
    return bits;
  }

  // The lowest bits of 8 bytes: no two products of the multiplication meet.
  static uint8_t octet(uint8_t const* bytes) {
    uint64_t eight;
    std::memcpy(&eight, bytes, sizeof(eight));
    return static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);
  }

  Lengths lengths_;
  DenseMask mask_;
  int32_t first_ = 0;  // query of the row
  uint8_t const* data_ = nullptr;
};

}  // namespace

NodePtr dense(Lengths const& lengths, DenseMask const& mask) {
  return std::make_unique<DenseLeaf>(lengths, mask);
}

}  // namespace fa2::masks

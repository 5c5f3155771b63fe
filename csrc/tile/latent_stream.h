#pragma once

#include "tile/paged_stream.h"

namespace fa2 {

// As PagedStream, of tiles that are keys and, in their leading columns, values. They are read until
// the end of a step, during which the next ones come: those of tile n go to buffer n % 2.
template <class Element, int kRows, int kCols, int kThreads, int kPad>
class LatentStream : public PagedStream<Element, kRows, kCols, kThreads, kPad> {
  using Base = PagedStream<Element, kRows, kCols, kThreads, kPad>;

 public:
  static constexpr int kBuffers = 2;

  CUTE_DEVICE LatentStream(KeyRows const& rows, int last, Element* smem)
      : Base(rows, last, smem), first_target_(this->target_) {}

  template <Rows kCheck>
  CUTE_DEVICE void load(int n, int rows) {
    this->target_ = first_target_ + n % kBuffers * Base::Smem::kElements;
    Base::template load<kCheck>(n, rows);
  }

  // Values are in the same buffers.
  struct Values {
    using Smem = typename Base::Smem;
  };

 private:
  Element* first_target_;
};

}  // namespace fa2

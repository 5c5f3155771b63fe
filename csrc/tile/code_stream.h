#pragma once

#include "tile/codes.h"
#include "tile/paged_stream.h"

namespace fa2 {

// As PagedStream, for codes of 8 bits, whose tile in shared memory is one of elements. Codes are
// copied to the first halves of where their elements go; when they have landed, and before others
// read them, each thread expands those that it has copied itself, so that no barrier is added. The
// thread that looks after a row copies the row's factor, too. kTakesPower: see codes.h.
template <class Element, int kRows, int kCols, int kThreads, int kPad, bool kTakesPower>
class CodeStream : public PagedStream<Element, kRows, kCols, kThreads, kPad> {
  using Base = PagedStream<Element, kRows, kCols, kThreads, kPad>;
  using Base::kPasses, Base::kChunks, Base::kNeighbours;
  using typename Base::Copies;

 public:
  // `factors` are kRows floats in shared memory, which expand() leaves the rests of factors in.
  CUTE_DEVICE CodeStream(KeyRows const& rows, CodeType const& type, Scales const& scales,
                         float* factors, int last, Element* smem)
      : Base(rows, last, smem), type_(type), scales_(scales), factors_(factors) {}

  template <Rows kCheck>
  CUTE_DEVICE void load(int n, int rows) {
    this->template copy_rows<uint8_t, kCheck>(rows);
    copy_factor<kCheck>(rows);
    cp_async_fence();
    this->look_up(n - 1);
  }

  // Of the tile that was loaded last and has landed.
  CUTE_DEVICE void expand() {
    switch (type_) {
      case CodeType::kFloat8E4M3: return expand<CodeType::kFloat8E4M3>();
      case CodeType::kFloat8E5M2: return expand<CodeType::kFloat8E5M2>();
      default: return expand<CodeType::kInt8>();
    }
  }

 private:
  CUTE_DEVICE static bool looks_after_row() { return thread_index() % kNeighbours < kPasses; }

  // Rows outside the sequence, whose codes are zeros, have the factor 1.
  template <Rows kCheck>
  CUTE_DEVICE void copy_factor(int rows) {
    if (!looks_after_row()) return;
    int const row = Base::own_row();
    if (kCheck == Rows::kBounded && row >= rows) {
      factors_[row] = 1.f;
      return;
    }
    TensorRef const& t = scales_.factors;
    int64_t const place = scales_.unit == ScaleUnit::kSequence ? this->rows_.batch : this->page_;
    auto const* const from = static_cast<float const*>(t.data) + place * t.batch_stride +
                             this->row_in_page() * t.row_stride + this->rows_.head * t.head_stride;
    SM80_CP_ASYNC_CACHEALWAYS<uint32_t>::copy(*reinterpret_cast<uint32_t const*>(from),
                                              reinterpret_cast<uint32_t&>(factors_[row]));
  }

  template <CodeType kType>
  CUTE_DEVICE void expand() {
    float own_power = 1.f;
    if (looks_after_row()) {
      float& factor = factors_[Base::own_row()];
      auto const [power, rest] = code_factor<Element, kTakesPower>(kType, factor);
      own_power = power;
      factor = rest;
    }
    auto const chunks = this->chunks();
    CUTE_NO_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      float power = 1.f;
      if constexpr (kTakesPower) power = __shfl_sync(0xffffffffu, own_power, pass, kNeighbours);
      CUTE_UNROLL
      for (int c = 0; c < kChunks; ++c) expand_chunk<kType>(&chunks(pass, c), power);
    }
  }

  template <CodeType kType>
  CUTE_DEVICE static void expand_chunk(Element* chunk, float power) {
    auto const codes = *reinterpret_cast<cutlass::AlignedArray<uint32_t, 2> const*>(chunk);
    cutlass::AlignedArray<uint32_t, 4> elements;
    CUTE_UNROLL
    for (int word = 0; word < 2; ++word) {
      uint32_t pairs[2];
      code_halves<kType>(codes[word], pairs);
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i)
        elements[2 * word + i] = element_pair<Element, kTakesPower>(pairs[i], power);
    }
    *reinterpret_cast<decltype(elements)*>(chunk) = elements;
  }

  CodeType const& type_;
  Scales const& scales_;
  float* factors_;
};

}  // namespace fa2

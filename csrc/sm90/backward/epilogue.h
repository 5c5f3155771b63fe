#pragma once

// Writes dK and dV of a warpgroup's keys, or adds them to what other calls have left, straight from
// registers.

#include "sm90/backward/config.h"
#include "tile/fragments.h"
#include "tile/quad_words.h"

namespace fa2::sm90 {

template <class Config>
class BwdEpilogue {
  using Element = typename Config::Element;
  template <int kNum>
  using Grad = decltype(make_tensor<float>(AccumulatorLayout<1, kNum>{}));

 public:
  CUTE_DEVICE BwdEpilogue(BwdArgs const& args, sm80::BwdWorkTile const& work)
      : args_(args.common), work_(work) {}

  CUTE_DEVICE void store_keys(Grad<Config::kNumK>& grad) const {
    CUTE_UNROLL
    for (int i = 0; i < size(grad); ++i) grad(i) *= args_.grad_scale;
    put<Config::kNumK>(args_.problem.grad_k, args_.problem.forward.head_dim, grad);
  }
  CUTE_DEVICE void store_values(Grad<Config::kNumV>& grad) const {
    if constexpr (Config::kModified) {
      CUTE_UNROLL
      for (int i = 0; i < size(grad); ++i) grad(i) *= args_.inv_keep_prob;
    }
    put<Config::kNumV>(args_.problem.grad_v, args_.problem.forward.head_dim_v, grad);
  }

 private:
  template <int kNum>
  CUTE_DEVICE void put(TensorRef const& to, int width, Grad<kNum>& grad) const {
    if (args_.problem.accumulates) return add<kNum>(to, width, grad);
    auto rounded = make_tensor<Element>(OperandLayout<1, kNum / 2>{});
    round_to_operand(grad, rounded);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) store_row<kNum>(to, width, rounded, i);
  }

  // The lane's first key, or its second one.
  CUTE_DEVICE int key(int i) const {
    return work_.col_begin + (warp_index() - 4) % (Config::kTile.block_n / 16) * 16 +
           lane_row(lane_index()) + 8 * i;
  }
  template <class T>
  CUTE_DEVICE T* row_of(TensorRef const& to, int i) const {
    return head_ptr<T>(to, work_.batch, work_.first_row_k, work_.head_kv) + key(i) * to.row_stride;
  }

  // Four lanes share a row. They exchange words, so that each stores 16 bytes at a time.
  template <int kNum, class Rounded>
  CUTE_DEVICE void store_row(TensorRef const& to, int width, Rounded& rounded, int i) const {
    int const lane = lane_index(), first_col = 8 * (lane % 4);
    Element* const row = row_of<Element>(to, i) + first_col;
    bool const exists = key(i) < work_.seqlen_k;
    auto const packed = recast<uint32_t>(rounded);  // ((row half, 8-column half), 1, 16 columns)
    CUTE_UNROLL
    for (int j = 0; j < kNum; j += 4) {
      uint32_t words[4];
      CUTE_UNROLL
      for (int c = 0; c < 4; ++c) words[c] = packed(i + 2 * (c % 2), 0, (j + c) / 2);
      transpose_in_quad(words, lane);
      if (exists && first_col + 8 * j < width) store_words(row + 8 * j, words);
    }
  }

  template <int kNum>
  CUTE_DEVICE void add(TensorRef const& to, int width, Grad<kNum> const& grad) const {
    int const first_col = lane_col(lane_index());
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (key(i) >= work_.seqlen_k) continue;
      float* const row = row_of<float>(to, i) + first_col;
      CUTE_UNROLL
      for (int j = 0; j < kNum; ++j) {
        if (first_col + 8 * j >= width) continue;
        auto& there = reinterpret_cast<float2&>(row[8 * j]);
        there = make_float2(there.x + grad(2 * i, 0, j), there.y + grad(2 * i + 1, 0, j));
      }
    }
  }

  sm80::BwdArgs const& args_;
  sm80::BwdWorkTile const& work_;
};

}  // namespace fa2::sm90

#pragma once

// Finishes the softmax and writes the output and the log-sum-exp, straight from registers: no
// shared memory is needed, where the keys of the next tile stream in meanwhile.

#include "sm90/forward/mainloop.h"
#include "tile/quad_words.h"

namespace fa2::sm90 {

template <class Config>
class FwdEpilogue {
  using Element = typename Config::Element;
  using Mainloop = FwdMainloop<Config>;

 public:
  CUTE_DEVICE FwdEpilogue(FwdArgs const& args, WorkTile const& work) : args_(args), work_(work) {}

  CUTE_DEVICE void store(Mainloop& mainloop) const {
    auto o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      float const scale = finish_row(mainloop.softmax, i);
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); ++j) o(i, j) *= scale;
    }
    auto rounded = make_tensor<Element>(OperandLayout<1, Config::kNumO / 2>{});
    round_to_operand(mainloop.output, rounded);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) store_row(rounded, i);
  }

 private:
  struct Row {
    int query;
    int head;
    bool exists;
  };

  // The lane's first row, or its second one.
  CUTE_DEVICE Row row_of(int i) const {
    int const row = FwdScores<Config>::lane_first_row() + 8 * i;
    int const query = work_.query_begin + args_.pack.query(row);
    return {query, work_.head + args_.pack.head(row), query < work_.seqlen_q};
  }

  // Stores the row's log-sum-exp, and returns what its output is multiplied by.
  CUTE_DEVICE float finish_row(OverlappedSoftmax const& softmax, int i) const {
    FwdParams const& p = args_.problem;
    auto const [query, head, exists] = row_of(i);
    RowState state{softmax.base(i), quad_sum(softmax.sum(i))};
    if (p.sink != nullptr) state = merge_sink(state, p.sink[head], DeviceExp2{});
    if (lane_index() % 4 == 0 && exists) {
      p.lse[lse_index(p, work_.batch, work_.first_row_q, head) + query] = row_lse(state);
    }
    // The sink may have raised the base, which the output is relative to.
    return row_scale(state) * exp2_approx(softmax.base(i) - state.base) *
           (Config::kPlain ? 1.f : args_.inv_keep_prob);
  }

  // Four lanes share a row. They exchange words, so that each stores 16 bytes at a time.
  template <class Rounded>
  CUTE_DEVICE void store_row(Rounded& rounded, int i) const {
    FwdParams const& p = args_.problem;
    auto const [query, head, exists] = row_of(i);
    int const lane = lane_index(), first_col = 8 * (lane % 4);
    Element* const out = head_ptr<Element>(p.out, work_.batch, work_.first_row_q, head) +
                         query * p.out.row_stride + first_col;
    auto const packed = recast<uint32_t>(rounded);  // ((row half, 8-column half), 1, 16 columns)
    CUTE_UNROLL
    for (int j = 0; j < Config::kNumO; j += 4) {
      uint32_t words[4];
      CUTE_UNROLL
      for (int c = 0; c < 4; ++c) words[c] = packed(i + 2 * (c % 2), 0, (j + c) / 2);
      transpose_in_quad(words, lane);
      if (exists && first_col + 8 * j < p.head_dim_v) {
        store_words(out + 8 * j, words);
      }
    }
  }

  FwdArgs const& args_;
  WorkTile const& work_;
};

}  // namespace fa2::sm90

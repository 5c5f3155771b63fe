#pragma once

// Merges what the warps of a CTA found for a row over the keys of a split, and adds splits up or
// stores them for the combine kernel.

#include "sm80/forward/mainloop.h"
#include "sm80/split/config.h"
#include "sm80/split/sum.h"

namespace fa2::sm80 {

template <class Config>
class SplitEpilogue {
  using Args = SplitArgs;
  using Element = typename Config::Element;
  using Mainloop = FwdMainloop<Config>;
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;

  // A lane takes chunks of 16 bytes of float32, 8 lanes a row.
  static constexpr int kChunk = 4, kLanesPerRow = 8, kStep = kChunk * kLanesPerRow;
  static constexpr int kChunks = kTile.head_dim_v / kStep;
  static constexpr int kRowsAtOnce = kTile.threads() / kLanesPerRow;
  using Chunk = cutlass::AlignedArray<float, kChunk>;

  struct Row {
    RowState state = empty_row();
    float out[kChunks][kChunk] = {};  // relative to the state's base
  };

 public:
  CUTE_DEVICE SplitEpilogue(Args const& args, Smem& smem) : args_(args), smem_(smem) {}

  // Few rows: the first CTA adds to its sum, the others store. The next split's tiles become those
  // of the work.
  CUTE_DEVICE void add_split(Mainloop& mainloop, int split) {
    static_assert(!Config::kSums || kTile.block_m == kRowsAtOnce);
    gather(mainloop, split + 1);
    int const row = own_row();
    if (!exists(row)) return;
    Row const found = merged(row);
    if (smem_.work.cta != 0) return store_partial(row, found, smem_.work.sharing.slot(split));
    add(sum_, found);
  }

  // When all splits have been added.
  CUTE_DEVICE void store_sum() {
    int const row = own_row();
    if (!exists(row)) return;
    if (smem_.work.sharing.stored() > 1) return store_partial(row, sum_, 0);
    store_finished(row, sum_);
  }

  // Many rows: of the CTA's only split.
  CUTE_DEVICE void store_split(Mainloop& mainloop) {
    gather(mainloop, 0);
    bool const finished = smem_.work.sharing.stored() <= 1;
    CUTE_NO_UNROLL
    for (int row = own_row(); row < kTile.block_m; row += kRowsAtOnce) {
      if (!exists(row)) continue;
      Row const found = merged(row);
      if (finished) {
        store_finished(row, found);
      } else {
        store_partial(row, found, smem_.work.cta);
      }
    }
  }

 private:
  CUTE_DEVICE static int own_row() { return thread_index() / kLanesPerRow; }
  CUTE_DEVICE static int own_col() { return thread_index() % kLanesPerRow * kChunk; }
  CUTE_DEVICE bool exists(int row) const {
    return smem_.work.row_begin + row < smem_.work.num_rows;
  }

  // What all warps found goes to shared memory, when nobody reads what lies there any longer.
  CUTE_DEVICE void gather(Mainloop& mainloop, int next_split) {
    __syncthreads();
    if constexpr (Config::kPairs) sum_pairs(mainloop);
    stage(mainloop);
    if (Config::kSums && threadIdx.x == 0) {
      SplitWorkTile& work = smem_.work;
      work.tiles = tiles_of_split(work.all_tiles, work.tiles_each, next_split);
    }
    __syncthreads();
  }

  // Sums of rows that a pair of warps shares, over both.
  CUTE_DEVICE static void sum_pairs(Mainloop& mainloop) {
    auto& sum = mainloop.softmax.sum;
    CUTE_UNROLL
    for (int i = 0; i < size(sum); ++i) sum(i) = quad_sum(sum(i));
    mainloop.exchange_rows(sum, [](float own, float other) { return own + other; });
  }

  // A warp's sums and outputs, relative to its own bases.
  CUTE_DEVICE void stage(Mainloop& mainloop) {
    int const lane = lane_index(), warp = kTile.key_warps > 1 ? Warps::key_part() : 0;
    int const first_row = Warps::row_begin() + lane_row(lane);
    int const first_col = kTile.column_warps > 1 ? Warps::column_warp() * Config::kNumO * 8 : 0;
    auto& softmax = mainloop.softmax;
    auto const o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) {
      int const row = first_row + RowCoord<kM>{}(i);
      float const sum = Config::kPairs ? softmax.sum(i) : quad_sum(softmax.sum(i));
      bool const first = kTile.column_warps == 1 || Warps::column_warp() == 0;
      if (lane % 4 == 0 && first) smem_.found.rows[warp][row] = {softmax.base(i), sum};
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); j += 2) {
        int const col = first_col + ColCoord<Config::kNumO>{}(j) + lane_col(lane);
        cutlass::AlignedArray<float, 2> pair;
        pair[0] = o(i, j);
        pair[1] = o(i, j + 1);
        float* const to = &smem_.found.out[warp][row * Config::kOutStride + col];
        *reinterpret_cast<decltype(pair)*>(to) = pair;
      }
    }
  }

  // A row over the keys of all warps.
  CUTE_DEVICE Row merged(int row) const {
    auto const& found = smem_.found;
    Row result;
    result.state = found.rows[0][row];
    CUTE_UNROLL
    for (int w = 1; w < kTile.key_warps; ++w) {
      result.state = merge(result.state, found.rows[w][row], DeviceExp2{});
    }
    CUTE_UNROLL
    for (int w = 0; w < kTile.key_warps; ++w) {
      float const factor = exp2_approx(found.rows[w][row].base - result.state.base);
      CUTE_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        int const at = row * Config::kOutStride + own_col() + c * kStep;
        auto const part = *reinterpret_cast<Chunk const*>(&found.out[w][at]);
        CUTE_UNROLL
        for (int i = 0; i < kChunk; ++i) {
          result.out[c][i] = fmaf(factor, part[i], result.out[c][i]);
        }
      }
    }
    return result;
  }

  CUTE_DEVICE static void add(Row& sum, Row const& split) {
    float const base = fmaxf(sum.state.base, split.state.base);
    SumFactors const factors = sum_factors(sum.state.base, split.state.base, base);
    sum.state = {base, added(sum.state.sum, split.state.sum, factors)};
    CUTE_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      CUTE_UNROLL
      for (int i = 0; i < kChunk; ++i) {
        sum.out[c][i] = added(sum.out[c][i], split.out[c][i], factors);
      }
    }
  }

  CUTE_DEVICE void store_finished(int row, Row const& found) const {
    FwdParams const& p = args_.problem;
    SplitWorkTile const& work = smem_.work;
    int query, in_group;
    args_.group(query, in_group, work.row_begin + row);
    int const head = work.head_kv * args_.group.divisor + in_group;
    FinishedRow const finished =
        finish_row(found.state, p.sink != nullptr ? p.sink + head : nullptr);
    Element* const to = head_ptr<Element>(p.out, work.batch, work.first_row_q, head) +
                        query * p.out.row_stride + own_col();
    store_row<Element>(found, finished.scale, to);
    if (own_col() == 0) {
      p.lse[lse_index(p, work.batch, work.first_row_q, head) + query] = finished.lse;
    }
  }

  CUTE_DEVICE void store_partial(int row, Row const& found, int slot) const {
    FwdParams const& p = args_.problem;
    SplitWorkTile const& work = smem_.work;
    Partials const& partials = args_.partials;
    int64_t const first = partials.first_row(work.batch, work.first_row_q, args_.group.divisor);
    int64_t const at =
        partials.index(slot, p.num_heads_kv, work.head_kv, first + work.row_begin + row);
    store_row<float>(found, 1.f, partials.out + at * p.head_dim_v + own_col());
    if (own_col() == 0) partials.states[at] = found.state;
  }

  template <class T>
  CUTE_DEVICE void store_row(Row const& found, float scale, T* to) const {
    CUTE_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (own_col() + c * kStep >= args_.problem.head_dim_v) continue;
      cutlass::AlignedArray<T, kChunk> values;
      CUTE_UNROLL
      for (int i = 0; i < kChunk; ++i) values[i] = T(found.out[c][i] * scale);
      *reinterpret_cast<cutlass::AlignedArray<T, kChunk>*>(to + c * kStep) = values;
    }
  }

  Args const& args_;
  Smem& smem_;
  Row sum_;  // few rows: of this thread's row, over the splits so far
};

}  // namespace fa2::sm80

#pragma once

// The gradient of a bias: for each block of keys, for each tile of queries of one head, scores and
// dP once more, dS, and its sum with what other queries, heads and sequences add to the same
// entries. The order of each sum follows from where its terms stand, and from nothing else.

#include "cpu/level/grad_rows.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class E>
class ChunkBiasBackward : GradRows<E> {
  using Base = GradRows<E>;
  using Base::chunk_, Base::num_tiles_, Base::params_, Base::rule_, Base::work_;
  using Base::kAlwaysFar, Base::kCapacity, Base::kSize;
  using typename Base::Query;
  using typename Base::Real;
  using typename Base::Rows;

 public:
  ChunkBiasBackward(BiasBwdParams const& params, BiasChunk const& chunk, void* memory)
      : Base(params.forward, params.grad_out, params.grad_lse, chunk.queries, memory),
        sums_(chunk.sums),
        by_diagonals_(chunk.by_diagonals),
        begin_(chunk.begin),
        end_(chunk.end) {
    work_.scores.softcap_slopes = nullptr;  // biases come after softcap
  }

  void run() {
    ColRange const keys = keys_met();
    if (keys.begin >= keys.end) return;
    for (int t = 0; t < num_tiles_; ++t) {
      Query queries[kCapacity];
      Base::start_rows_of(work_.tiles[t], t, queries);
    }
    Base::recompute_far_rows();
    if (Base::has_lists()) {
      visit_lists(keys);
    } else {
      visit_range(keys);
    }
  }

 private:
  // Keys whose scores count for [begin_, end_), in whole blocks, so that sums do not depend on how
  // entries are divided.
  ColRange keys_met() const {
    int64_t begin = begin_, end = end_;
    if (by_diagonals_) {
      int64_t const first = chunk_.first - (params_.seqs_q.max_seqlen - 1);
      begin += first;
      end += first + chunk_.count - 1;
    }
    int64_t const length = chunk_.k_seq.length;
    if (begin < 0) begin = 0;
    if (end > length) end = length;
    int64_t const last = (end + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
    return {int32_t(begin / kKeyBlock * kKeyBlock), int32_t(last < length ? last : length)};
  }

  void visit_range(ColRange keys) {
    ColRange const seen = Base::seen_by(work_.tiles);
    int32_t const first_key = larger(seen.begin, keys.begin);
    for_blocks_back(first_key, smaller(seen.end, keys.end), kKeyBlock,
                    [&](int32_t begin, int32_t end) {
                      Block const block = rows_of(begin, end);
                      for (int t = 0; t < num_tiles_; ++t) {
                        GradTile<E> const& tile = work_.tiles[t];
                        int32_t const first = larger(begin, tile.begin / kKeyStep * kKeyStep);
                        int32_t const last = smaller(end, tile.end);
                        if (first < last) meet(t, first, last, block);
                      }
                    });
  }

  void visit_lists(ColRange keys) {
    for (int t = 0; t < num_tiles_; ++t) Base::start_lists(work_.tiles[t], t, keys);
    BlockMask const& mask = params_.block_mask;
    work_.lists.for_runs(mask, [&](int32_t group, BlockRun run) {
      ColRange const cols = Base::keys_of(group, run);
      Block const block = rows_of(cols.begin, cols.end);
      for (int t = 0; t < num_tiles_; ++t) {
        uint32_t const blocks = work_.lists.blocks_of(t, group) & run.bits();
        for_block_runs<Order::kDown>(blocks, [&](BlockRun part) {
          ColRange const seen = Base::keys_of(group, part);
          work_.lists.tiles[t].read(mask, work_.tiles[t], part, Base::seen_);
          meet(t, seen.begin, seen.end, block);
        });
      }
    });
  }

  struct Block {
    int32_t begin;
    Rows keys;
    Rows values;
  };

  Block rows_of(int32_t begin, int32_t end) const {
    Rows const keys = Base::keys_of_block(begin, end);
    return {begin, keys, Base::values_of_block(begin, end, keys)};
  }

  // Keys [begin, end) of the block against a tile.
  void meet(int index, int32_t begin, int32_t end, Block const& block) {
    GradTile<E> const& tile = work_.tiles[index];
    int64_t const skipped = begin - block.begin;
    with_vectors(tile.vectors, [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
      step<kVectors>(tile, index, begin, end, block.keys.after_keys(skipped),
                     block.values.after_keys(skipped));
    });
    int const num_keys = end - begin;
    int32_t const row = Base::first_query(index).row;
    if (by_diagonals_) {
      add_diagonals(tile, row, begin, num_keys);
    } else if (sums_.row_stride == 0) {
      add_keys(tile, row, begin, num_keys);
    } else if (sums_.col_stride == 0) {
      add_queries(tile, row, num_keys);
    } else {
      add_rows(tile, num_keys, place(row, begin), sums_.row_stride);
    }
  }

  // Gradients of scores, in their place.
  template <int kVectors>
  void step(GradTile<E> const& tile, int index, int32_t begin, int32_t end, Rows keys,
            Rows values) {
    int const num_keys = end - begin;
    Base::template score_keys<kVectors>(tile, begin, end, keys);
    Base::template multiply_grads<kVectors>(tile, values, num_keys);
    Base::template mark_kept_keys<kVectors>(tile, begin, num_keys);
    alignas(kVectorBytes) Uint<Real> counts[kCapacity];
    mark_rows(tile, index, counts);
    auto const differentiate = kAlwaysFar || tile.far ? &differentiate_scores<E, kVectors, true>
                                                      : &differentiate_scores<E, kVectors, false>;
    differentiate(rule_.scale, Base::keep_factor(), num_keys, tile, counts, work_.scores);
  }

  // All bits in the lanes of queries that attend to something.
  void mark_rows(GradTile<E> const& tile, int index, Uint<Real>* counts) const {
    Query query = Base::first_query(index);
    for (int i = 0; i < kCapacity; ++i) {
      bool const counting = i < tile.num_queries && !Base::is_empty(query);
      counts[i] = counting ? ~Uint<Real>(0) : 0;
      if (i + 1 < tile.num_queries) query = Base::next(query);
    }
  }

  Real* place(int32_t row, int32_t col) const {
    int64_t const offset = bias_offset(sums_, chunk_.batch, chunk_.head_kv, row);
    return static_cast<Real*>(sums_.data) + offset + col * sums_.col_stride;
  }

  // to[lane * row_step + key] += dS, lane after lane.
  void add_rows(GradTile<E> const& tile, int num_keys, Real* to, int64_t row_step) const {
    int const stride = tile.vectors * kSize;
    for (int first = 0; first < tile.num_queries; first += kSize) {
      int const lanes = smaller(kSize, tile.num_queries - first);
      for (int j = 0; j < num_keys; j += kSize) {
        int const count = smaller(kSize, num_keys - j);
        Vec<Real> rows[kSize];
        for (int i = 0; i < kSize; ++i) {
          Real const* const from = work_.scores.scores + (j + i) * stride + first;
          rows[i] = i < count ? load<Real>(from) : Vec<Real>{};
        }
        transpose<Real>(rows);
        for (int i = 0; i < lanes; ++i) {
          add_row(to + (first + i) * row_step + j, rows[i], count);
        }
      }
    }
  }

  static void add_row(Real* to, Vec<Real> values, int count) {
    if (count == kSize) return store(to, load<Real>(to) + values);
    for (int i = 0; i < count; ++i) to[i] += values[i];
  }

  // Sums of a tile, for entries that several of its queries share: rounding errors then grow with
  // the number of tiles and not with that of queries.
  struct TileSums {
    Real sums[kKeyBlock + kCapacity] = {};
  };

  void add_keys(GradTile<E> const& tile, int32_t row, int32_t begin, int num_keys) const {
    TileSums local;
    add_rows(tile, num_keys, local.sums, 0);
    Real* const to = place(row, begin);
    if (sums_.col_stride == 0) {
      Real total = 0;
      for (int j = 0; j < num_keys; ++j) total += local.sums[j];
      *to += total;
      return;
    }
    int const first = larger(0, begin_ - begin);
    int const last = smaller(num_keys, end_ - begin);
    for (int j = first; j < last; ++j) to[j] += local.sums[j];
  }

  void add_queries(GradTile<E> const& tile, int32_t row, int num_keys) const {
    int const stride = tile.vectors * kSize;
    for (int lane = 0; lane < tile.num_queries; ++lane) {
      Real total = 0;
      for (int j = 0; j < num_keys; ++j) total += work_.scores.scores[j * stride + lane];
      *place(row + lane, 0) += total;
    }
  }

  void add_diagonals(GradTile<E> const& tile, int32_t row, int32_t begin, int num_keys) const {
    TileSums local;
    int const last_lane = tile.num_queries - 1;
    add_rows(tile, num_keys, local.sums + last_lane, -1);
    // local.sums[i] is the diagonal of the last query and key begin + i.
    int32_t const diagonal = begin - (row + last_lane) + params_.seqs_q.max_seqlen - 1;
    Real* const to = place(row + last_lane, begin);
    int const first = larger(0, begin_ - diagonal);
    int const last = smaller(num_keys + last_lane, end_ - diagonal);
    for (int i = first; i < last; ++i) to[i] += local.sums[i];
  }

  Bias const sums_;
  bool const by_diagonals_;
  int32_t const begin_;
  int32_t const end_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

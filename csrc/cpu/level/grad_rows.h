#pragma once

// What every gradient of a chunk of queries begins with: lse and D of its rows, or what they are
// made of where that will not do, and its scores and dP against blocks of keys.

#include "cpu/level/chunk.h"
#include "cpu/level/derivatives.h"
#include "cpu/level/microkernel.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Scratch of one chunk, carved from one allocation.
template <class E>
struct GradRowsWorkspace {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  static constexpr int kWidth = GradTile<E>::kCapacity;

  GradTile<E>* tiles;
  ScoreBlock<Real> scores;  // [kKeyBlock][kWidth]
  OperandBlock<E> keys;     // K and V for products over head dims, [kKeyBlock]
  OperandBlock<E> values;
  ChunkLists<E, Order::kDown> lists;
  size_t bytes;

  // With memory == nullptr: only the size.
  GradRowsWorkspace(void* memory, HeadDims const& dims, int num_tiles) {
    Carver carver(memory);
    int const depth = (dims.qk + E::kDepth - 1) / E::kDepth;
    int const depth_v = (dims.v + E::kDepth - 1) / E::kDepth;
    tiles = carver.take<GradTile<E>>(num_tiles);
    lists = {carver.take<TileLists<E, Order::kDown>>(num_tiles), num_tiles};
    constexpr int kScores = kKeyBlock * kWidth;
    scores = {carver.take<Real>(kScores), carver.take<Real>(kScores), carver.take<Real>(kScores),
              carver.take<Uint<Real>>(kScores)};
    auto take_block = [&](int length) -> OperandBlock<E> {
      int64_t const stride = packed_stride<Operand>(length);
      return {carver.take<Operand>(kKeyBlock * stride), stride};
    };
    auto take_lanes = [&](int length) {
      return carver.take<Operand>(round_up(length, kLanes<Operand>) * kWidth);
    };
    keys = take_block(depth);
    values = take_block(depth_v);
    for (int t = 0; t < num_tiles; ++t) {
      Operand* const tile_queries = take_lanes(depth);
      Operand* const tile_grad_out = take_lanes(depth_v);
      if (memory == nullptr) continue;
      tiles[t].queries = tile_queries;
      tiles[t].grad_out = tile_grad_out;
    }
    bytes = carver.bytes();
  }
};

template <class E>
class GradRows : protected ChunkQueries<E> {
 protected:
  using Base = ChunkQueries<E>;
  using Base::chunk_, Base::num_tiles_, Base::params_, Base::rule_;
  using Base::kCapacity, Base::kSize;
  using typename Base::Products;
  using typename Base::Query;
  using typename Base::Real;
  using typename Base::Rows;
  using typename Base::Storage;

  GradRows(FwdParams const& params, TensorRef const& grad_out, float const* grad_lse,
           QueryChunk const& chunk, void* memory)
      : Base(params, chunk),
        grad_out_(grad_out),
        grad_lse_(grad_lse),
        work_(memory, head_dims(params), num_tiles_) {
    if (!rule_.scales.has_softcap) work_.scores.softcap_slopes = nullptr;
    if (!Base::drops()) work_.scores.keep = nullptr;
  }

  // Tile `index`, with its queries in `queries`, but for what `recompute_far_rows` does.
  void start_rows_of(GradTile<E>& tile, int index, Query (&queries)[kCapacity]) {
    Base::place_queries(tile, index, queries);
    Base::pack_lanes(tile.queries, params_.q, params_.head_dim, tile.vectors, queries);
    Base::pack_lanes(tile.grad_out, grad_out_, params_.head_dim_v, tile.vectors, queries);
    tile.large = false;
    for (int n = 0; n < tile.vectors; ++n) start_rows(tile, n, queries + n * kSize);
    tile.far = kAlwaysFar || tile.large;
    if (Base::has_lists()) start_lists(tile, index);
  }

  void recompute_far_rows() {
    if (has_exact_lse()) return;
    for (int t = 0; t < num_tiles_; ++t) {
      if (work_.tiles[t].far) recompute_rows(work_.tiles[t], t);
    }
  }

  // A float's lse is not enough for doubles.
  static constexpr bool kAlwaysFar = sizeof(Real) == sizeof(double);

  void start_lists(GradTile<E> const& tile, int index, ColRange keys = {0, kMaxSeqlen}) {
    keys.end = smaller(keys.end, chunk_.k_seq.length);
    Base::start_lists(work_.lists.tiles[index], tile, index, keys);
  }

  // Whether a row attends to nothing. Its gradients are 0, even where the query or all of the keys
  // are infinite, of which 0 times would be NaN.
  bool is_empty(Query query) const { return lse_at(Base::lse_of(query)) == -__builtin_inf(); }

  // Of rows whose keys may be in other calls: rows are made of their lse, in doubles.
  bool has_exact_lse() const { return params_.partial_lse != nullptr; }
  double lse_at(int64_t index) const {
    return has_exact_lse() ? params_.partial_lse[index] : double(params_.lse[index]);
  }

  template <int kVectors>
  void score_keys(GradTile<E> const& tile, int32_t begin, int32_t end, Rows keys) {
    constexpr int kWidth = kVectors * kSize;
    Base::for_score_ranges(tile, begin, end, [&](int32_t first, int32_t last, bool adjusted) {
      int const skipped = (first - begin) * kWidth;
      Real* const scores = work_.scores.scores + skipped;
      multiply_keys<Products, kVectors, false>(keys.data + (first - begin) * keys.stride,
                                               keys.stride, last - first, tile.queries,
                                               Base::depth(params_.head_dim), scores, nullptr);
      if (!adjusted) return;
      alignas(kVectorBytes) Real maxima[kWidth] = {};
      Real* const slopes = work_.scores.softcap_slopes;
      Base::template adjust<kVectors>(tile, first, last - first, scores, maxima,
                                      slopes == nullptr ? nullptr : slopes + skipped);
    });
  }

  // Keys [begin, end) of K and of V, for products over head dims.
  Rows keys_of_block(int32_t begin, int32_t end) const {
    return Base::rows_of_dims(params_.k, params_.head_dim, begin, end, work_.keys);
  }
  // Where the last operand of a row of values is a whole one: `keys` have others behind it.
  Rows values_of_block(int32_t begin, int32_t end, Rows keys) const {
    if (Base::keys_hold_values_ && params_.head_dim_v % E::kDepth == 0) return keys;
    return Base::rows_of_dims(params_.v, params_.head_dim_v, begin, end, work_.values);
  }

  // dP = V dO^T of `num_keys` keys.
  template <int kVectors>
  void multiply_grads(GradTile<E> const& tile, Rows values, int num_keys) {
    multiply_keys<Products, kVectors, false>(values.data, values.stride, num_keys, tile.grad_out,
                                             Base::depth(params_.head_dim_v),
                                             work_.scores.grad_probs, nullptr);
  }

  // Which of the keys [begin, begin + num_keys) dropout keeps, if there is any.
  template <int kVectors>
  void mark_kept_keys(GradTile<E> const& tile, int32_t begin, int num_keys) {
    if (!Base::drops()) return;
    mark_kept<Products, kVectors>(Base::dropout_, tile, begin, num_keys, work_.scores.keep);
  }

  TensorRef const& grad_out_;
  float const* const grad_lse_;
  GradRowsWorkspace<E> work_;

 private:
  // lse and delta of one vector of queries.
  void start_rows(GradTile<E>& tile, int n, Query const* queries) const {
    Storage const* out[kSize];
    Storage const* grad_out[kSize];
    for (int i = 0; i < kSize; ++i) {
      out[i] = Base::row_ptr(params_.out, queries[i]);
      grad_out[i] = Base::row_ptr(grad_out_, queries[i]);
    }
    Real* const delta = tile.delta + n * kSize;
    store(delta, row_products<E>(out, grad_out, params_.head_dim_v));
    for (int i = 0; i < kSize; ++i) {
      int64_t const at = Base::lse_of(queries[i]);
      bool const empty = is_empty(queries[i]);
      // An infinite lse makes every probability of the row zero.
      double const exact = lse_at(at) * kLog2eDouble;
      Real const lse2 = Real(exact);
      tile.lse[n * kSize + i] = empty ? Real(__builtin_inf()) : lse2;
      if (has_exact_lse()) start_far_row(tile, n * kSize + i, empty, exact);
      tile.large |= !empty && !(lse2 < kLargeLse && lse2 > -kLargeLse);
      if (grad_lse_ != nullptr) delta[i] -= Real(grad_lse_[at]);
      if (empty) delta[i] = 0;
    }
  }

  // What probabilities are made of where lse, here in base-2 units, is exact: what is lost in the
  // rounding of the base is left to the factor.
  void start_far_row(GradTile<E>& tile, int i, bool empty, double lse2) const {
    double const scale = double(rule_.scale);
    double const most = -double(kLowest<Real>);
    double const exact = lse2 / scale;
    double const base = exact < -most ? -most : (exact > most ? most : exact);
    tile.base[i] = empty ? Real(0) : Real(base);
    tile.inverse_sum[i] = empty ? Real(0) : Real(exp2_of(double(tile.base[i]) * scale - lse2));
  }

  // What probabilities are made of, from the scores once more; and D, which has to be exact in the
  // same way: it cancels against dP in rows that are all but one key's, and is multiplied by keys
  // that may be as large as scores are.
  void recompute_rows(GradTile<E>& tile, int index) {
    RowSums<E> rows = {};
    for (Real& base : rows.base) base = -Real(__builtin_inf());
    auto const add = [&](int32_t begin, int32_t end) {
      with_vectors(tile.vectors, [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
        add_block<kVectors>(tile, begin, end, rows);
      });
    };
    if (Base::has_lists()) {
      ChunkLists<E, Order::kDown> const own = {&work_.lists.tiles[index], 1};
      own.for_runs(params_.block_mask, [&](int32_t group, BlockRun run) {
        own.tiles->read(params_.block_mask, tile, run, Base::seen_);
        ColRange const cols = Base::keys_of(group, run);
        add(cols.begin, cols.end);
      });
      start_lists(tile, index);  // once more, for the gradients
    } else {
      for_blocks_back(tile.begin / kKeyStep * kKeyStep, tile.end, kKeyBlock, add);
    }
    Query query = Base::first_query(index);
    for (int i = 0; i < tile.vectors * kSize; ++i) {
      finish_row(tile, i, query, rows);
      if (i + 1 < tile.num_queries) query = Base::next(query);
    }
  }

  template <int kVectors>
  void add_block(GradTile<E> const& tile, int32_t begin, int32_t end, RowSums<E>& rows) {
    ScoreBlock<Real> const& scores = work_.scores;
    int const num_keys = end - begin;
    Rows const keys = keys_of_block(begin, end);
    score_keys<kVectors>(tile, begin, end, keys);
    if (tile.large) {
      Rows const values = values_of_block(begin, end, keys);
      multiply_grads<kVectors>(tile, values, num_keys);
      mark_kept_keys<kVectors>(tile, begin, num_keys);
    }
    auto const add = tile.large ? &add_rows<E, kVectors, true> : &add_rows<E, kVectors, false>;
    add(rule_.scale, Base::keep_factor(), num_keys, scores, rows);
  }

  // Of lane i.
  void finish_row(GradTile<E>& tile, int i, Query query, RowSums<E> const& rows) const {
    int64_t const at = Base::lse_of(query);
    RowBase<Real> const base = {rows.base[i], true};
    Real total = rows.sum[i];
    if (params_.sink != nullptr) total += exp2_of(Base::sink_distance(base, query));
    bool const empty = total == 0 || is_empty(query);
    tile.base[i] = base.finite();
    tile.inverse_sum[i] = empty ? 0 : 1 / total;
    if (!tile.large || empty) return;
    tile.delta[i] = rows.dot[i] / total;
    if (grad_lse_ != nullptr) tile.delta[i] -= Real(grad_lse_[at]);
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

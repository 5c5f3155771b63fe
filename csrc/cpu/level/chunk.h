#pragma once

// What forward and backward share about a chunk of queries: how its queries are spread over tiles
// and lanes, where their rows lie, what they see, and how blocks of keys are brought to them.

#include "core/block_range.h"
#include "core/latents.h"
#include "core/mask.h"
#include "core/positions.h"
#include "core/seq_info.h"
#include "cpu/level/key_rows.h"
#include "cpu/level/pack.h"
#include "cpu/level/quantised.h"
#include "cpu/level/query_lanes.h"
#include "cpu/level/scores.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Cuts one allocation into aligned arrays. Without memory, only counts bytes.
class Carver {
 public:
  explicit Carver(void* memory) : begin_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 64;
    char* const place = begin_ + bytes_;
    bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(place);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* begin_;
  size_t bytes_ = 0;
};

// Calls step with the number of vectors as a template argument.
template <class Step>
FA2_CPU_INLINE void with_vectors(int vectors, Step const& step) {
  if (vectors == 1) return step.template operator()<1>();
  if constexpr (kTileVectors == 4) {
    if (vectors == 3) return step.template operator()<3>();
    if (vectors == 4) return step.template operator()<4>();
  }
  step.template operator()<2>();
}

// libm's functions by their C names: overloads of std:: would be inline functions of this level.
FA2_CPU_INLINE float exp2_of(float x) { return __builtin_exp2f(x); }
FA2_CPU_INLINE double exp2_of(double x) { return __builtin_exp2(x); }
FA2_CPU_INLINE float log_of(float x) { return __builtin_logf(x); }
FA2_CPU_INLINE double log_of(double x) { return __builtin_log(x); }
FA2_CPU_INLINE double exp_of(double x) { return __builtin_exp(x); }
FA2_CPU_INLINE double log1p_of(double x) { return __builtin_log1p(x); }
FA2_CPU_INLINE float fma_of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FA2_CPU_INLINE double fma_of(double a, double b, double c) { return __builtin_fma(a, b, c); }

// Rows of operands in memory.
template <class E>
struct OperandRows {
  typename E::Operand const* data;
  int64_t stride;

  // `keys` must be a multiple of the keys that share a row.
  OperandRows after_keys(int64_t keys) const { return {data + keys * stride, stride}; }
  OperandRows after_values(int64_t keys) const {
    return {data + keys / E::kDepth * stride, stride};
  }
};

// Room for a packed block of keys.
template <class E>
struct OperandBlock {
  typename E::Operand* data;
  int64_t stride;
};

template <class E>
class ChunkQueries {
 protected:
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  using Products = typename E::Products;
  using Rows = OperandRows<E>;
  static constexpr int kSize = kLanes<Real>;
  static constexpr int kCapacity = LanesOf<E>::kCapacity;

  ChunkQueries(FwdParams const& params, QueryChunk const& chunk)
      : params_(params),
        chunk_(chunk),
        group_(params.group()),
        diagonal_(first_diagonal(params, chunk.q_seq, chunk.k_seq)),
        num_tiles_((chunk.count + kCapacity - 1) / kCapacity),
        keys_hold_values_(keys_hold_values(params)),
        rule_(score_rule<Real>(params)) {
    if (params.dropout.drop_prob > 0) {
      int64_t const* const state = params.dropout.rng_state;
      dropout_ = {dropout_keep_threshold(params.dropout.drop_prob), dropout_stream(state[1]),
                  uint64_t(state[0]), params.positions.k_start};
    }
  }

  // A packed query. Stepping from lane to lane saves a division for each.
  struct Query {
    int32_t row;
    int32_t in_group;
  };
  Query first_query(int tile) const {
    int64_t const packed = chunk_.first + int64_t(tile) * kCapacity;
    return {int32_t(packed / group_), int32_t(packed % group_)};
  }
  Query next(Query query) const {
    if (query.in_group + 1 < group_) return {query.row, query.in_group + 1};
    return {query.row + 1, 0};
  }
  int32_t head_of(Query query) const { return chunk_.head_kv * group_ + query.in_group; }
  template <class T>
  T* row_of(TensorRef const& tensor, Query query) const {
    return head_ptr<T>(tensor, chunk_.batch, chunk_.q_seq.first_row, head_of(query)) +
           query.row * tensor.row_stride;
  }
  template <class Q = E>
  typename Q::Storage* row_ptr(TensorRef const& tensor, Query query) const {
    return row_of<typename Q::Storage>(tensor, query);
  }
  // Index into lse.
  int64_t lse_of(Query query) const {
    return lse_index(params_, chunk_.batch, chunk_.q_seq.first_row, head_of(query)) + query.row;
  }

  // Operands of a row of so many entries.
  static int depth(int head_dim) { return (head_dim + E::kDepth - 1) / E::kDepth; }

  ColRange cols_of(Query query) const {
    return cols_around(query.row + diagonal_, chunk_.k_seq.length, params_.window);
  }
  Real diagonal_of(Query query) const { return Real(query.row + diagonal_); }
  Real slope_of(Query query) const {
    return Real(alibi_slope(params_.score_mod, chunk_.batch, head_of(query)));
  }

  // The sink of a query relative to what its probabilities are relative to, as a power of 2.
  Real sink_distance(RowBase<Real> base, Query query) const {
    Real const score = base.finite();
    Real const sink = Real(params_.sink[head_of(query)]);
    Real const to_largest = fma_of(-score, rule_.natural, sink) * Real(kLog2eDouble);
    return base.far ? to_largest
                    : to_largest + fma_of(score, rule_.scale, -base.shift(rule_.scale));
  }

  // Spreads the queries of tile `index` over its lanes; queries[i] is the one of lane i. Of the
  // keys that they see, only those in `keys` count.
  void place_queries(LanesOf<E>& tile, int index, Query (&queries)[kCapacity],
                     ColRange keys = {0, INT32_MAX}) const {
    tile.num_queries = smaller(kCapacity, chunk_.count - index * kCapacity);
    tile.vectors = (tile.num_queries + kSize - 1) / kSize;
    int const lanes = tile.vectors * kSize;
    Query query = first_query(index);
    for (int i = 0; i < lanes; ++i) {
      queries[i] = query;
      place_query(tile, i, query, keys);
      if (i + 1 < tile.num_queries) query = next(query);
    }
    // A window moves right with its query, so the first and the last bound all the others.
    tile.begin = int32_t(tile.col_begin[0]);
    tile.full_begin = int32_t(tile.col_begin[lanes - 1]);
    tile.full_end = int32_t(tile.col_end[0]);
    tile.end = int32_t(tile.col_end[lanes - 1]);
  }

  // Keys that the tiles of the chunk see, from a multiple of kKeyStep on.
  template <class TileOfQueries>
  ColRange seen_by(TileOfQueries const* tiles) const {
    ColRange keys = {chunk_.k_seq.length, 0};
    for (int t = 0; t < num_tiles_; ++t) {
      if (tiles[t].begin >= tiles[t].end) continue;
      keys.begin = smaller(keys.begin, tiles[t].begin / kKeyStep * kKeyStep);
      keys.end = larger(keys.end, tiles[t].end);
    }
    return keys;
  }

  // The rows of `tensor`, which are `head_dim` wide, at `queries`, transposed: to[operand][lane].
  void pack_lanes(Operand* to, TensorRef const& tensor, int head_dim, int vectors,
                  Query const* queries) const {
    with_query_element<E>(params_.dtype, [&]<class Q>() FA2_CPU_INLINE_LAMBDA {
      for (int n = 0; n < vectors; ++n) {
        typename Q::Storage const* rows[kSize];
        for (int i = 0; i < kSize; ++i) rows[i] = row_ptr<Q>(tensor, queries[n * kSize + i]);
        pack_queries<Q>(to + n * kSize, vectors * kSize, rows, head_dim);
      }
    });
  }

  // A lone tile reads operands where they lie: packing pays only when several tiles share it, or
  // when the rows come from memory and are far apart, since it fetches them ahead.
  bool reads_in_place(TensorRef const& tensor, int head_dim) const {
    constexpr int32_t kCachedKeys = 2048;
    bool const near = tensor.row_stride == head_dim || chunk_.k_seq.length < kCachedKeys;
    return E::kDirect && num_tiles_ == 1 && near && params_.pages.block_table == nullptr;
  }

  // Keys [begin, end) of K or V, which is `head_dim` wide, as rows of head dims, for products over
  // the head dim.
  Rows rows_of_dims(TensorRef const& tensor, int head_dim, int32_t begin, int32_t end,
                    OperandBlock<E> const& room) const {
    Storage const* rows[kKeyBlock];
    find_rows(rows, tensor, params_.pages, chunk_, begin, end);
    if constexpr (E::kDirect) {
      if (reads_in_place(tensor, head_dim)) return {rows[0], tensor.row_stride};
    }
    pack_keys<E>(room.data, room.stride, rows, end - begin, head_dim);
    return {room.data, room.stride};
  }

  // The same for products over keys.
  Rows rows_of_keys(TensorRef const& tensor, int head_dim, int32_t begin, int32_t end,
                    OperandBlock<E> const& room) const {
    Storage const* rows[kKeyBlock];
    find_rows(rows, tensor, params_.pages, chunk_, begin, end);
    if constexpr (E::kDirect) {
      if (reads_in_place(tensor, head_dim)) return {rows[0], tensor.row_stride};
    }
    pack_values<E>(room.data, room.stride, rows, end - begin, head_dim);
    return {room.data, room.stride};
  }

  // Keys [begin, end) of a cache of 8 bits, multiplied by their factors.
  Rows dequantised_rows(TensorRef const& tensor, Scales const& scales, int head_dim, int32_t begin,
                        int32_t end, OperandBlock<E> const& room) const {
    rows_of_dims(tensor, head_dim, begin, end, room);
    float factors[kKeyBlock];
    read_factors<E>(factors, scales, params_.pages, chunk_, 1, begin, end);
    for (int32_t i = 0; i < end - begin; ++i) {
      Operand* const row = room.data + i * room.stride;
      for (int d = 0; d < head_dim; d += kSize) store(row + d, load<Real>(row + d) * factors[i]);
    }
    return {room.data, room.stride};
  }

  // Keys of a run of blocks of a group that a block mask lists.
  ColRange keys_of(int32_t group, BlockRun run) const {
    int32_t const first = group * kGroupBlocks;
    return {(first + run.begin) * BlockMask::kBlock,
            smaller((first + run.end) * BlockMask::kBlock, chunk_.k_seq.length)};
  }

  // Calls step(first, last, adjusted) on parts of the keys [begin, end): only those that some query
  // of the tile does not see need the mask, unless every score is modified anyway.
  template <class Step>
  void for_score_ranges(LanesOf<E> const& tile, int32_t begin, int32_t end,
                        Step const& step) const {
    if (has_lists()) return for_listed_ranges(begin, end, step);
    if (rule_.modifies) return step(begin, end, true);
    int32_t const full_begin = smaller(end, larger(begin, tile.full_begin));
    int32_t const full_end = smaller(end, larger(full_begin, tile.full_end));
    if (begin < full_begin) step(begin, full_begin, true);
    if (full_begin < full_end) step(full_begin, full_end, false);
    if (full_end < end) step(full_end, end, true);
  }

  // Softcap, ALiBi, biases and mask on keys of such a part.
  template <int kVectors>
  void adjust(LanesOf<E> const& tile, int32_t first, int num_keys, Real* scores, Real* maxima,
              Real* softcap_slopes = nullptr) const {
    if (has_lists()) {
      adjust_scores<Products, kVectors>(rule_, tile,
                                        WordMask<Products>{seen_.words[seen_.block_of(first)]},
                                        first, num_keys, scores, maxima, softcap_slopes);
    } else {
      adjust_scores<Products, kVectors>(rule_, tile, ColumnMask<Products>{tile, first}, first,
                                        num_keys, scores, maxima, softcap_slopes);
    }
  }

  // What `tile`, tile `index` of the chunk, lists of `keys`.
  template <Order kOrder>
  void start_lists(TileLists<E, kOrder>& lists, LanesOf<E> const& tile, int index,
                   ColRange keys) const {
    int heads[kCapacity];
    Query query = first_query(index);
    for (int i = 0; i < tile.num_queries; ++i, query = next(query)) heads[i] = head_of(query);
    lists.start(params_, chunk_.batch, tile, heads, keys);
  }

  bool has_lists() const { return params_.block_mask.row_offsets != nullptr; }

  bool drops() const { return params_.dropout.drop_prob > 0; }
  // What survivors of dropout are multiplied by.
  Real keep_factor() const { return Real(1 / (1 - params_.dropout.drop_prob)); }

  FwdParams const& params_;
  QueryChunk const& chunk_;
  int const group_;
  int32_t const diagonal_;  // the key that the first query of the sequence stands on
  int const num_tiles_;
  bool const keys_hold_values_;
  ScoreRule<Real> const rule_;
  DropoutRule dropout_ = {};
  RunMask<E> seen_;  // by a block mask, of the keys at hand

 private:
  // Blocks that all lanes see stay together; of the others, each has words of its own.
  template <class Step>
  void for_listed_ranges(int32_t begin, int32_t end, Step const& step) const {
    auto adjusted = [&](int32_t key) { return rule_.modifies || !seen_.full[seen_.block_of(key)]; };
    auto after = [&](int32_t key) { return smaller(end, key + BlockMask::kBlock); };
    for (int32_t first = begin; first < end;) {
      bool const adjusts = adjusted(first);
      int32_t last = after(first);
      while (!adjusts && last < end && !adjusted(last)) last = after(last);
      step(first, last, adjusts);
      first = last;
    }
  }

  void place_query(LanesOf<E>& tile, int lane, Query query, ColRange keys) const {
    ColRange const cols = cols_of(query);
    tile.col_begin[lane] = larger(cols.begin, keys.begin);
    tile.col_end[lane] = smaller(cols.end, keys.end);
    tile.row[lane] = Uint<Real>(params_.positions.q_start + query.row);
    tile.batch_head[lane] = dropout_batch_head(params_, chunk_.batch, head_of(query));
    tile.diagonal[lane] = diagonal_of(query);
    tile.slope[lane] = slope_of(query);
    for (int i = 0; i < rule_.num_biases; ++i) {
      tile.bias_offset[i][lane] =
          bias_offset(rule_.biases[i], chunk_.batch, head_of(query), query.row);
    }
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

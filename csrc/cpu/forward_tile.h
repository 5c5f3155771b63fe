#pragma once

// Attention of one chunk of queries: for each block of keys, for each tile of queries,
// scores = K Q^T, online softmax, out += V^T P^T.

#include "core/mask.h"
#include "core/online_softmax.h"
#include "core/seq_info.h"
#include "cpu/few_queries.h"
#include "cpu/kernels.h"
#include "cpu/microkernel.h"
#include "cpu/pack.h"
#include "cpu/scores.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Scratch of one chunk, carved from one allocation.
template <class E>
struct Workspace {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  static constexpr int kWidth = Tile<E>::kCapacity;

  Tile<E>* tiles;
  Real* scores;     // [kKeyBlock][kWidth]; probabilities take their place
  Operand* keys;    // [kKeyBlock][key_stride]
  Operand* values;  // [kKeyBlock / kDepth][value_stride]
  int64_t key_stride;
  int64_t value_stride;
  size_t bytes;

  // With memory == nullptr: only the size. Tile t gets its own queries and outputs.
  Workspace(void* memory, int head_dim, int num_tiles) {
    char* const begin = static_cast<char*>(memory);
    size_t used = 0;
    auto take = [&](size_t size) {
      char* const place = begin + used;
      used += (size + kAlignment - 1) / kAlignment * kAlignment;
      return static_cast<void*>(place);
    };
    int const depth = (head_dim + E::kDepth - 1) / E::kDepth;
    int const padded_depth = round_up(depth, kLanes<Operand>);
    int const padded_dim = round_up(head_dim, kLanes<Real>);
    key_stride = packed_stride<Operand>(depth);
    value_stride = packed_stride<Operand>(head_dim);
    tiles = static_cast<Tile<E>*>(take(num_tiles * sizeof(Tile<E>)));
    scores = static_cast<Real*>(take(kKeyBlock * kWidth * sizeof(Real)));
    keys = static_cast<Operand*>(take(kKeyBlock * key_stride * sizeof(Operand)));
    values = static_cast<Operand*>(take(kKeyBlock / E::kDepth * value_stride * sizeof(Operand)));
    for (int t = 0; t < num_tiles; ++t) {
      void* const queries = take(padded_depth * kWidth * sizeof(Operand));
      void* const out = take(padded_dim * kWidth * sizeof(Real));
      if (memory == nullptr) continue;
      tiles[t].queries = static_cast<Operand*>(queries);
      tiles[t].out = static_cast<Real*>(out);
    }
    bytes = used;
  }

 private:
  static constexpr size_t kAlignment = 64;
};

// libm's functions by their C names: overloads of std:: would be inline functions of this level.
FA2_CPU_INLINE float exp2_of(float x) { return __builtin_exp2f(x); }
FA2_CPU_INLINE double exp2_of(double x) { return __builtin_exp2(x); }
FA2_CPU_INLINE float log_of(float x) { return __builtin_logf(x); }
FA2_CPU_INLINE double log_of(double x) { return __builtin_log(x); }

template <class E>
class ChunkForward {
  using Storage = typename E::Storage;
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  static constexpr int kSize = kLanes<Real>;
  static constexpr int kCapacity = Tile<E>::kCapacity;
  static constexpr int kFew = kFewQueries < kSize ? kFewQueries : kSize;

 public:
  ChunkForward(FwdParams const& params, QueryChunk const& chunk, void* memory)
      : params_(params),
        chunk_(chunk),
        group_(params.group()),
        num_tiles_((chunk.count + kCapacity - 1) / kCapacity),
        workspace_(memory, params.head_dim, num_tiles_),
        rule_(score_rule<Real>(params)) {
    if (params.dropout.drop_prob > 0.f) {
      uint64_t const offset = uint64_t(params.dropout.rng_state[1]);
      dropout_ = {dropout_keep_threshold(params.dropout.drop_prob),
                  uint32_t(offset) ^ uint32_t(offset >> 32), uint64_t(params.dropout.rng_state[0])};
    }
  }

  void run() {
    int32_t begin = chunk_.k_seq.length;
    int32_t end = 0;
    for (int t = 0; t < num_tiles_; ++t) {
      Tile<E>& tile = workspace_.tiles[t];
      start_tile(tile, t);
      if (tile.begin >= tile.end) continue;
      begin = smaller(begin, tile.begin);
      end = larger(end, tile.end);
    }
    // Blocks start at multiples of kKeyBlock whatever the chunk sees, so that no result depends on
    // how queries are grouped.
    for (int32_t block = begin / kKeyBlock * kKeyBlock; block < end; block += kKeyBlock) {
      visit_block(larger(block, begin / kKeyStep * kKeyStep), smaller(block + kKeyBlock, end));
    }
    for (int t = 0; t < num_tiles_; ++t) finish_tile(workspace_.tiles[t], t);
  }

 private:
  struct Rows {
    Operand const* data;
    int64_t stride;
  };

  // Calls step with the number of vectors as a template argument.
  template <class Step>
  static FA2_CPU_INLINE void with_vectors(int vectors, Step const& step) {
    if (vectors == 1) return step.template operator()<1>();
    if constexpr (kTileVectors == 4) {
      if (vectors == 3) return step.template operator()<3>();
      if (vectors == 4) return step.template operator()<4>();
    }
    step.template operator()<2>();
  }

  // A packed query. Stepping from lane to lane saves a division for each.
  struct Query {
    int32_t row;
    int32_t in_group;
  };
  Query query_at(int64_t packed) const {
    return {int32_t(packed / group_), int32_t(packed % group_)};
  }
  Query next(Query query) const {
    if (query.in_group + 1 < group_) return {query.row, query.in_group + 1};
    return {query.row + 1, 0};
  }
  int32_t head_of(Query query) const { return chunk_.head_kv * group_ + query.in_group; }
  Storage* row_ptr(TensorRef const& tensor, Query query) const {
    return head_ptr<Storage>(tensor, chunk_.batch, chunk_.q_seq.first_row, head_of(query)) +
           query.row * tensor.row_stride;
  }
  Storage const* key_ptr(TensorRef const& tensor, int32_t key) const {
    return head_ptr<Storage const>(tensor, chunk_.batch, chunk_.k_seq.first_row, chunk_.head_kv) +
           key * tensor.row_stride;
  }
  ColRange cols_of(int32_t row) const {
    return visible_cols(row, chunk_.q_seq.length, chunk_.k_seq.length, params_.window);
  }

  void start_tile(Tile<E>& tile, int index) {
    tile.num_queries = smaller(kCapacity, chunk_.count - index * kCapacity);
    tile.vectors = (tile.num_queries + kSize - 1) / kSize;
    int const lanes = tile.vectors * kSize;
    Storage const* rows[kCapacity];
    Query query = query_at(chunk_.first + index * kCapacity);
    for (int i = 0; i < lanes; ++i) {
      rows[i] = row_ptr(params_.q, query);
      init_lane(tile, i, query.row, head_of(query));
      if (i + 1 < tile.num_queries) query = next(query);
    }
    // A window moves right with its query, so the first and the last bound all the others.
    tile.begin = int32_t(tile.col_begin[0]);
    tile.full_begin = int32_t(tile.col_begin[lanes - 1]);
    tile.full_end = int32_t(tile.col_end[0]);
    tile.end = int32_t(tile.col_end[lanes - 1]);
    if (has_few_queries()) {
      pack_query_rows<E>(tile.queries, query_stride(), rows, tile.num_queries, params_.head_dim);
    } else {
      for (int n = 0; n < tile.vectors; ++n) {
        pack_queries<E>(tile.queries + n * kSize, lanes, rows + n * kSize, params_.head_dim);
      }
    }
    __builtin_memset(tile.out, 0, sizeof(Real) * round_up(params_.head_dim, kSize) * lanes);
  }

  void init_lane(Tile<E>& tile, int lane, int32_t row, int32_t head) const {
    ColRange const cols = cols_of(row);
    ScoreMod const& mod = params_.score_mod;
    tile.col_begin[lane] = cols.begin;
    tile.col_end[lane] = cols.end;
    tile.base[lane] = rule_.empty_base;
    tile.sum[lane] = 0;
    tile.row[lane] = Uint<Real>(row);
    tile.batch_head[lane] = Uint<Real>(chunk_.batch * params_.num_heads + head);
    tile.diagonal[lane] = Real(row + chunk_.k_seq.length - chunk_.q_seq.length);
    tile.slope[lane] =
        rule_.has_alibi
            ? Real(mod.alibi_slopes[chunk_.batch * mod.alibi_batch_stride + head] * kLog2eDouble)
            : Real(0);
  }

  // Whether the chunk goes through few_queries.h; then it is one tile of one vector. A property of
  // the sequence and not of how it was cut into chunks, on which no result may depend.
  bool has_few_queries() const { return int64_t(chunk_.q_seq.length) * group_ <= kFew; }
  int depth() const { return (params_.head_dim + E::kDepth - 1) / E::kDepth; }
  int query_stride() const { return round_up(depth(), kLanes<Operand>); }

  // Keys [begin, end) against every tile that sees some of them.
  void visit_block(int32_t begin, int32_t end) {
    if (has_few_queries()) return step<1>(workspace_.tiles[0], begin, end, {}, {});
    Rows const keys = block_keys(begin, end);
    Rows const values = block_values(begin, end);
    for (int t = 0; t < num_tiles_; ++t) {
      Tile<E>& tile = workspace_.tiles[t];
      int32_t const first = larger(begin, tile.begin / kKeyStep * kKeyStep);
      int32_t const last = smaller(end, tile.end);
      if (first >= last) continue;
      int64_t const skipped = first - begin;
      with_vectors(tile.vectors, [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
        step<kVectors>(tile, first, last, {keys.data + skipped * keys.stride, keys.stride},
                       {values.data + skipped / E::kDepth * values.stride, values.stride});
      });
    }
  }

  // A lone tile reads operands where they lie: packing pays only when several tiles share it.
  bool reads_in_place() const { return E::kDirect && num_tiles_ == 1; }

  Rows block_keys(int32_t begin, int32_t end) {
    Storage const* const from = key_ptr(params_.k, begin);
    if constexpr (E::kDirect) {
      if (reads_in_place()) return {from, params_.k.row_stride};
    }
    pack_keys<E>(workspace_.keys, workspace_.key_stride, from, params_.k.row_stride, end - begin,
                 params_.head_dim);
    return {workspace_.keys, workspace_.key_stride};
  }

  Rows block_values(int32_t begin, int32_t end) {
    Storage const* const from = key_ptr(params_.v, begin);
    if constexpr (E::kDirect) {
      if (reads_in_place()) return {from, params_.v.row_stride};
    }
    pack_values<E>(workspace_.values, workspace_.value_stride, from, params_.v.row_stride,
                   end - begin, params_.head_dim);
    return {workspace_.values, workspace_.value_stride};
  }

  template <int kVectors>
  void step(Tile<E>& tile, int32_t begin, int32_t end, Rows keys, Rows values) {
    constexpr int kWidth = kVectors * kSize;
    int const num_keys = end - begin;
    Real* const scores = workspace_.scores;
    alignas(kVectorBytes) Real maxima[kWidth];
    alignas(kVectorBytes) Real rescale[kWidth];
    __builtin_memcpy(maxima, tile.base, sizeof(maxima));

    // Scores = K Q^T
    score_keys<kVectors>(tile, begin, end, keys, maxima);

    // Online softmax
    int const padded = round_up(num_keys, 4);
    for (int i = num_keys * kWidth; i < padded * kWidth; ++i) scores[i] = -Real(__builtin_inf());
    exponentiate<E, kVectors>(rule_.scale, num_keys, tile, maxima, scores, rescale);
    if (params_.dropout.drop_prob > 0.f) drop<E, kVectors>(dropout_, tile, begin, num_keys, scores);

    // Out = out * rescale + V^T P^T
    Operand const* const probs = reinterpret_cast<Operand const*>(scores);
    if (kVectors == 1 && has_few_queries()) {
      auto const multiply =
          tile.num_queries == 1 ? &multiply_values_few<E, 1> : &multiply_values_few<E, kFew>;
      multiply(key_ptr(params_.v, begin), params_.v.row_stride, num_keys, probs, params_.head_dim,
               rescale, tile.out);
    } else {
      multiply_values<E, kVectors>(values.data, values.stride,
                                   (num_keys + E::kDepth - 1) / E::kDepth, probs, params_.head_dim,
                                   rescale, tile.out);
    }
  }

  // Only the keys that some query of the tile does not see go through the mask.
  template <int kVectors>
  void score_keys(Tile<E> const& tile, int32_t begin, int32_t end, Rows keys, Real* maxima) {
    constexpr int kWidth = kVectors * kSize;
    auto score = [&](int32_t first, int32_t last, bool adjusted) {
      if (first >= last) return;
      Real* const scores = workspace_.scores + (first - begin) * kWidth;
      alignas(kVectorBytes) Real raw_maxima[kWidth] = {};
      Real* const reached = adjusted ? raw_maxima : maxima;
      if (kVectors == 1 && has_few_queries()) {
        multiply_keys_few<E>(key_ptr(params_.k, first), params_.k.row_stride, last - first,
                             tile.queries, query_stride(), tile.num_queries, params_.head_dim,
                             scores, reached);
      } else {
        multiply_keys<E, kVectors>(keys.data + (first - begin) * keys.stride, keys.stride,
                                   last - first, tile.queries, depth(), scores, reached);
      }
      if (adjusted) {
        adjust_scores<E, kVectors>(rule_, tile, first, last - first, scores, maxima);
      }
    };
    if (rule_.modifies()) return score(begin, end, true);
    int32_t const full_begin = smaller(end, larger(begin, tile.full_begin));
    int32_t const full_end = smaller(end, larger(full_begin, tile.full_end));
    score(begin, full_begin, true);
    score(full_begin, full_end, false);
    score(full_end, end, true);
  }

  void finish_tile(Tile<E> const& tile, int index) {
    Query query = query_at(chunk_.first + index * kCapacity);
    for (int n = 0; n < tile.vectors; ++n) {
      int const count = smaller(kSize, tile.num_queries - n * kSize);
      alignas(kVectorBytes) Real scale[kSize] = {};
      Storage* rows[kSize];
      for (int i = 0; i < count; ++i, query = next(query)) {
        int const lane = n * kSize + i;
        rows[i] = row_ptr(params_.out, query);
        scale[i] = finish_row(tile.base[lane], tile.sum[lane], query.row, head_of(query));
      }
      unpack_outputs<E>(rows, count, tile.out + n * kSize, tile.vectors * kSize, load<Real>(scale),
                        params_.head_dim);
    }
  }

  // Writes lse and returns the factor of the output.
  Real finish_row(Real base, Real sum, int32_t row, int32_t head) const {
    Real exponent = base * rule_.scale;
    Real factor = 1;
    if (params_.sink != nullptr) {
      Real const logit = Real(params_.sink[head] * kLog2eDouble);
      Real const merged = exponent > logit ? exponent : logit;
      factor = exp2_of(exponent - merged);
      sum = sum * factor + exp2_of(logit - merged);
      exponent = merged;
    }
    Real const lse = exponent * Real(kLn2Double) + log_of(sum);
    params_.lse[lse_index(params_, chunk_.batch, chunk_.q_seq.first_row, head) + row] =
        sum == 0 ? -__builtin_inff() : float(lse);
    if (params_.dropout.drop_prob > 0.f) factor /= 1 - Real(params_.dropout.drop_prob);
    return sum == 0 ? 0 : factor / sum;
  }

  FwdParams const& params_;
  QueryChunk const& chunk_;
  int const group_;
  int const num_tiles_;
  Workspace<E> workspace_;
  ScoreRule<Real> const rule_;
  DropoutRule dropout_ = {};
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

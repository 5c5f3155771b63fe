#pragma once

// Attention of one chunk of queries: for each block of keys, for each tile of queries,
// scores = K Q^T, online softmax, out += V^T P^T.

#include "cpu/level/microkernel.h"
#include "cpu/level/row_results.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Scratch of one chunk, carved from one allocation.
template <class E>
struct Workspace {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  static constexpr int kWidth = Tile<E>::kCapacity;

  Tile<E>* tiles;
  Real* scores;            // [kKeyBlock][kWidth]; probabilities take their place
  OperandBlock<E> keys;    // [kKeyBlock]
  OperandBlock<E> values;  // [kKeyBlock / kDepth]
  ChunkLists<E, Order::kUp> lists;
  size_t bytes;

  // With memory == nullptr: only the size. Tile t gets its own queries and outputs.
  Workspace(void* memory, HeadDims const& dims, int num_tiles) {
    Carver carver(memory);
    int const depth = (dims.qk + E::kDepth - 1) / E::kDepth;
    int const padded_depth = round_up(depth, kLanes<Operand>);
    int const padded_dim = round_up(dims.v, kLanes<Real>);
    keys.stride = packed_stride<Operand>(depth);
    values.stride = packed_stride<Operand>(dims.v);
    tiles = carver.take<Tile<E>>(num_tiles);
    lists = {carver.take<TileLists<E, Order::kUp>>(num_tiles), num_tiles};
    scores = carver.take<Real>(kKeyBlock * kWidth);
    keys.data = carver.take<Operand>(kKeyBlock * keys.stride);
    values.data = carver.take<Operand>(kKeyBlock / E::kDepth * values.stride);
    for (int t = 0; t < num_tiles; ++t) {
      Operand* const queries = carver.take<Operand>(padded_depth * kWidth);
      Real* const out = carver.take<Real>(padded_dim * kWidth);
      if (memory == nullptr) continue;
      tiles[t].queries = queries;
      tiles[t].out = out;
    }
    bytes = carver.bytes();
  }
};

template <class E>
class ChunkForward : RowResults<E> {
  using Base = RowResults<E>;
  using Base::chunk_, Base::group_, Base::num_tiles_, Base::params_, Base::rule_;
  using Base::kCapacity, Base::kSize;
  using typename Base::Operand;
  using typename Base::Products;
  using typename Base::Query;
  using typename Base::Real;
  using typename Base::Rows;
  using typename Base::Storage;

 public:
  ChunkForward(FwdParams const& params, ForwardChunk const& chunk, void* memory)
      : Base(params, chunk.queries),
        keys_{chunk.key_begin, chunk.key_end},
        partial_(chunk.partial),
        workspace_(memory, head_dims(params), num_tiles_) {}

  void run() {
    for (int t = 0; t < num_tiles_; ++t) start_tile(workspace_.tiles[t], t);
    if (Base::has_lists()) {
      visit_lists();
    } else {
      visit_range();
    }
    for (int t = 0; t < num_tiles_; ++t) finish_tile(workspace_.tiles[t], t);
  }

 private:
  void start_tile(Tile<E>& tile, int index) {
    Query queries[kCapacity];
    Base::place_queries(tile, index, queries, keys_);
    int const lanes = tile.vectors * kSize;
    for (int i = 0; i < lanes; ++i) {
      tile.base[i] = RowBase<Real>().score;
      tile.sum[i] = 0;
    }
    tile.far = false;
    Base::pack_lanes(tile.queries, params_.q, params_.head_dim, tile.vectors, queries);
    if (Base::has_lists()) {
      Base::start_lists(workspace_.lists.tiles[index], tile, index,
                        {keys_.begin, smaller(keys_.end, chunk_.k_seq.length)});
    }
    __builtin_memset(tile.out, 0, sizeof(Real) * round_up(params_.head_dim_v, kSize) * lanes);
  }

  // What the tiles see from the first key to the last.
  void visit_range() {
    ColRange const keys = Base::seen_by(workspace_.tiles);
    for_blocks(keys.begin, keys.end, kKeyBlock,
               [&](int32_t first, int32_t last) { visit_block(first, last); });
  }

  // What the tiles list. A tile takes the neighbours among its blocks of a group in one step.
  void visit_lists() {
    ChunkLists<E, Order::kUp> const& lists = workspace_.lists;
    BlockMask const& mask = params_.block_mask;
    lists.for_runs(mask, [&](int32_t group, BlockRun run) {
      ColRange const cols = Base::keys_of(group, run);
      Rows const keys = keys_of_block(cols.begin, cols.end);
      Rows const values = values_of_block(cols.begin, cols.end, keys);
      for (int t = 0; t < num_tiles_; ++t) {
        for_block_runs<Order::kUp>(lists.blocks_of(t, group) & run.bits(), [&](BlockRun part) {
          Tile<E>& tile = workspace_.tiles[t];
          lists.tiles[t].read(mask, tile, part, Base::seen_);
          ColRange const seen = Base::keys_of(group, part);
          meet(tile, seen.begin, seen.end, seen.begin - cols.begin, keys, values);
        });
      }
    });
  }

  Rows keys_of_block(int32_t begin, int32_t end) const {
    if constexpr (kQuantised<E>) {
      return Base::dequantised_rows(params_.k, params_.quantised.k, params_.head_dim, begin, end,
                                    workspace_.keys);
    }
    return Base::rows_of_dims(params_.k, params_.head_dim, begin, end, workspace_.keys);
  }
  // Packed for products over keys, rows look as they do for products over head dims where operands
  // are single entries.
  Rows values_of_block(int32_t begin, int32_t end, Rows keys) const {
    if constexpr (kQuantised<E>) {
      return Base::dequantised_rows(params_.v, params_.quantised.v, params_.head_dim_v, begin, end,
                                    workspace_.values);
    }
    if (E::kDepth == 1 && Base::keys_hold_values_) return keys;
    return Base::rows_of_keys(params_.v, params_.head_dim_v, begin, end, workspace_.values);
  }

  // Keys [begin, end) against every tile that sees some of them.
  void visit_block(int32_t begin, int32_t end) {
    Rows const keys = keys_of_block(begin, end);
    Rows const values = values_of_block(begin, end, keys);
    for (int t = 0; t < num_tiles_; ++t) {
      Tile<E>& tile = workspace_.tiles[t];
      int32_t const first = larger(begin, tile.begin / kKeyStep * kKeyStep);
      int32_t const last = smaller(end, tile.end);
      if (first >= last) continue;
      meet(tile, first, last, first - begin, keys, values);
    }
  }

  // Keys [begin, end), which come `skipped` rows after those that keys and values begin with.
  void meet(Tile<E>& tile, int32_t begin, int32_t end, int64_t skipped, Rows keys, Rows values) {
    with_vectors(tile.vectors, [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
      step<kVectors>(tile, begin, end, keys.after_keys(skipped), values.after_values(skipped));
    });
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
    bool const far = tile.far || any_turns_far(maxima, kWidth, rule_.scale);
    auto const exponentiate = far ? &cpu::FA2_CPU_LEVEL::exponentiate<E, kVectors, true>
                                  : &cpu::FA2_CPU_LEVEL::exponentiate<E, kVectors, false>;
    exponentiate(rule_.scale, num_keys, tile, maxima, scores, rescale);
    if (Base::drops()) drop<Products, kVectors>(Base::dropout_, tile, begin, num_keys, scores);

    // Out = out * rescale + V^T P^T
    Operand const* const probs = reinterpret_cast<Operand const*>(scores);
    multiply_values<Products, kVectors>(values.data, values.stride,
                                        (num_keys + E::kDepth - 1) / E::kDepth, probs,
                                        params_.head_dim_v, rescale, tile.out);
  }

  template <int kVectors>
  void score_keys(Tile<E> const& tile, int32_t begin, int32_t end, Rows keys, Real* maxima) {
    constexpr int kWidth = kVectors * kSize;
    Base::for_score_ranges(tile, begin, end, [&](int32_t first, int32_t last, bool adjusted) {
      Real* const scores = workspace_.scores + (first - begin) * kWidth;
      alignas(kVectorBytes) Real raw_maxima[kWidth] = {};
      Real* const reached = adjusted ? raw_maxima : maxima;
      multiply_keys<Products, kVectors>(keys.data + (first - begin) * keys.stride, keys.stride,
                                        last - first, tile.queries, Base::depth(params_.head_dim),
                                        scores, reached);
      if (adjusted) {
        Base::template adjust<kVectors>(tile, first, last - first, scores, maxima);
      }
    });
  }

  void finish_tile(Tile<E> const& tile, int index) {
    if (partial_ == nullptr && Base::merges()) return merge_tile(tile, index);
    with_query_element<E>(params_.dtype, [&]<class Q>() FA2_CPU_INLINE_LAMBDA {
      Query query = Base::first_query(index);
      for (int n = 0; n < tile.vectors; ++n) finish_vector<Q>(tile, index, n, query);
    });
  }

  // Of vector n of the lanes; `query` is its first one, and becomes that of the next vector.
  template <class Q>
  FA2_CPU_INLINE void finish_vector(Tile<E> const& tile, int index, int n, Query& query) {
    int const first = n * kSize;
    int const count = smaller(kSize, tile.num_queries - first);
    alignas(kVectorBytes) Real scale[kSize] = {};
    typename Q::Storage* rows[kSize];
    Real* sums[kSize];
    for (int i = 0; i < count; ++i, query = Base::next(query)) {
      RowState<Real> const row = {{tile.base[first + i], tile.far}, tile.sum[first + i]};
      if (partial_ != nullptr) {
        SplitResult<E> const result(partial_, index * kCapacity + first + i, params_.head_dim_v);
        *result.state = row;
        sums[i] = result.out;
      } else {
        rows[i] = Base::template row_ptr<Q>(params_.out, query);
        scale[i] = Base::finish_row(row, query);
      }
    }
    Real const* const out = tile.out + first;
    int const stride = tile.vectors * kSize;
    if (partial_ != nullptr) {
      unpack_outputs<PlainElement<Real>>(sums, count, out, stride, broadcast(Real(1)),
                                         params_.head_dim_v);
    } else {
      unpack_outputs<Q>(rows, count, out, stride, load<Real>(scale), params_.head_dim_v);
    }
  }

  void merge_tile(Tile<E> const& tile, int index) {
    Query query = Base::first_query(index);
    for (int n = 0; n < tile.vectors; ++n) {
      int const first = n * kSize;
      int const count = smaller(kSize, tile.num_queries - first);
      alignas(kVectorBytes) Real own[kSize] = {};
      Real there[kSize];
      Real* rows[kSize];
      for (int i = 0; i < count; ++i, query = Base::next(query)) {
        auto const factors =
            Base::merge_row({{tile.base[first + i], tile.far}, tile.sum[first + i]}, query);
        own[i] = factors.own;
        there[i] = factors.there;
        rows[i] = Base::sums_of(query);
      }
      add_outputs<Real>(rows, count, tile.out + first, tile.vectors * kSize, load<Real>(own), there,
                        params_.head_dim_v);
    }
  }

  ColRange const keys_;
  void* const partial_;
  Workspace<E> workspace_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

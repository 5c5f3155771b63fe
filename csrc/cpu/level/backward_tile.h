#pragma once

// Gradients of one chunk of queries: for each block of keys, for each tile of queries,
//   scores = K Q^T, dP = V dO^T, P and dS, dQ += K^T dS,
// then for the chunk as a whole dV += P^T dO and dK += dS^T Q. A split of a chunk does so for some
// of its keys; the last one adds up their dQ.

#include "cpu/level/grad_rows.h"
#include "cpu/level/key_grads.h"
#include "cpu/level/split_grads.h"
#include "cpu/turns.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Scratch of one chunk beside that of its rows, carved from one allocation.
template <class E>
struct GradWorkspace {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  static constexpr int kWidth = GradTile<E>::kCapacity;

  WeightBlock<E> weights;     // [kKeyBlock]
  OperandBlock<E> key_pairs;  // K for the product over keys, [kKeyBlock / kDepth], if kDepth > 1
  QueryPanels<E> queries;
  QueryPanels<E> grad_out;
  Real* ones;    // [kWidth]: what dQ is rescaled by from block to block
  Real* grad_q;  // of all tiles
  int64_t grad_q_stride;
  size_t bytes;

  // With memory == nullptr: only the size.
  GradWorkspace(void* memory, HeadDims const& dims, int num_tiles) {
    Carver carver(memory);
    int const num_queries = num_tiles * kWidth;
    ones = carver.take<Real>(kWidth);
    weights.stride = packed_stride<Operand>(num_queries / E::kDepth);
    weights.probs = carver.take<Operand>(kKeyBlock * weights.stride);
    weights.grad_scores = carver.take<Operand>(kKeyBlock * weights.stride);
    if constexpr (E::kDepth > 1) {
      key_pairs.stride = packed_stride<Operand>(dims.qk);
      key_pairs.data = carver.take<Operand>(kKeyBlock / E::kDepth * key_pairs.stride);
    }
    auto take_panels = [&](int head_dim) -> QueryPanels<E> {
      return {carver.take<Operand>(QueryPanels<E>::operands(num_queries, head_dim)),
              num_queries / E::kDepth, round_up(head_dim, kLanes<Real>) / kLanes<Operand>};
    };
    queries = take_panels(dims.qk);
    grad_out = take_panels(dims.v);
    grad_q_stride = int64_t(round_up(dims.qk, kLanes<Real>)) * kWidth;
    grad_q = carver.take<Real>(num_tiles * grad_q_stride);
    bytes = carver.bytes();
  }
};

template <class E>
class ChunkBackward : GradRows<E> {
  using Base = GradRows<E>;
  using Base::chunk_, Base::group_, Base::num_tiles_, Base::params_, Base::rule_;
  using Base::kAlwaysFar, Base::kCapacity, Base::kSize, Base::work_;
  using typename Base::Operand;
  using typename Base::Products;
  using typename Base::Query;
  using typename Base::Real;
  using typename Base::Rows;
  using typename Base::Storage;

 public:
  ChunkBackward(BwdParams const& params, BackwardChunk const& chunk, void* memory)
      : Base(params.forward, params.grad_out, params.grad_lse, chunk.queries, memory),
        grads_(params),
        keys_(chunk.keys),
        turn_(chunk.turn),
        split_(chunk.split),
        sums_(chunk.key_sums, chunk.queries.k_seq.length, head_dims(params.forward)),
        sink_sums_(chunk.sink_sums),
        workspace_(static_cast<char*>(memory) + work_.bytes, head_dims(params.forward),
                   num_tiles_) {
    for (int i = 0; i < kCapacity; ++i) workspace_.ones[i] = 1;
    if (sink_sums_ != nullptr) __builtin_memset(sink_sums_, 0, group_ * sizeof(double));
  }

  void run() {
    for (int t = 0; t < num_tiles_; ++t) start_tile(work_.tiles[t], t);
    if (split_ == nullptr) {
      Base::recompute_far_rows();
    } else {
      start_split();
    }
    if (sink_sums_ != nullptr) {
      for (int t = 0; t < num_tiles_; ++t) add_sink_grads(work_.tiles[t], t);
    }
    if (Base::has_lists()) {
      visit_lists();
    } else {
      visit_range();
    }
    if (split_ != nullptr) return finish_split();
    finish_tiles();
  }

 private:
  void start_tile(GradTile<E>& tile, int index) {
    Query queries[kCapacity];
    Base::start_rows_of(tile, index, queries);
    pack_panels(workspace_.queries, params_.q, params_.head_dim, tile, index, queries);
    pack_panels(workspace_.grad_out, grads_.grad_out, params_.head_dim_v, tile, index, queries);
    tile.grad_q = workspace_.grad_q + index * workspace_.grad_q_stride;
    int const lanes = tile.vectors * kSize;
    __builtin_memset(tile.grad_q, 0, sizeof(Real) * round_up(params_.head_dim, kSize) * lanes);
  }

  void pack_panels(QueryPanels<E> const& panels, TensorRef const& tensor, int head_dim,
                   GradTile<E> const& tile, int index, Query const* queries) const {
    static constexpr Storage kZeros[kMaxHeadDim] = {};
    Storage const* rows[kCapacity];
    for (int i = 0; i < tile.num_queries; ++i) {
      rows[i] = Base::is_empty(queries[i]) ? kZeros : Base::row_ptr(tensor, queries[i]);
    }
    panels.pack(index * kCapacity, tile.num_queries, rows, head_dim);
  }

  SplitGrads<E> splits() const {
    return {split_->memory(), params_.head_dim, num_tiles_, split_->num_splits()};
  }

  // Far rows take all of their keys: the first split computes them once more for all.
  void start_split() {
    split_->wait_for_memory();
    bool const first = split_->split() == 0;
    if (first) Base::recompute_far_rows();
    for (int t = 0; t < num_tiles_; ++t) {
      GradTile<E>& tile = work_.tiles[t];
      Base::start_lists(tile, t, keys_);
      if (!tile.far) continue;
      if (first) {
        splits().keep_rows(tile, t);
      } else {
        split_->wait_until_prepared();
        splits().read_rows(tile, t);
      }
    }
    if (first) split_->prepared();
  }

  void finish_split() {
    for (int t = 0; t < num_tiles_; ++t) {
      splits().keep_grad_q(work_.tiles[t], t, split_->split());
    }
    if (!split_->finish()) return;
    for (int t = 0; t < num_tiles_; ++t) splits().read_grad_q(work_.tiles[t], t);
    finish_tiles();
    split_->release();
  }

  // The share of the sink in the softmax of the row in lane i.
  Real sink_prob(GradTile<E> const& tile, int i, Query query) const {
    if (tile.far) {
      Real const relative = exp2_of(Base::sink_distance({tile.base[i], true}, query));
      return relative == Real(__builtin_inf()) ? 1 : relative * tile.inverse_sum[i];
    }
    Real const sink = Real(params_.sink[Base::head_of(query)] * kLog2eDouble);
    Real const prob = exp2_of(sink - tile.lse[i]);
    return prob > 1 ? 1 : prob;
  }

  void add_sink_grads(GradTile<E> const& tile, int index) const {
    Query query = Base::first_query(index);
    for (int i = 0; i < tile.num_queries; ++i, query = Base::next(query)) {
      sink_sums_[query.in_group] -= double(sink_prob(tile, i, query) * tile.delta[i]);
    }
  }

  // Keys and values [begin, end), as the products take them.
  struct Block {
    int32_t begin;
    int32_t end;
    Rows keys;
    Rows values;
    Rows key_pairs;
  };

  Block block(int32_t begin, int32_t end) const {
    Rows const keys = Base::keys_of_block(begin, end);
    Rows const values = Base::values_of_block(begin, end, keys);
    Rows key_pairs = keys;
    if constexpr (E::kDepth > 1) {
      key_pairs = Base::rows_of_keys(params_.k, params_.head_dim, begin, end, workspace_.key_pairs);
    }
    return {begin, end, keys, values, key_pairs};
  }

  // What the tiles see, from the last key to the first.
  void visit_range() {
    ColRange const seen = Base::seen_by(work_.tiles);
    for_blocks_back(seen.begin, seen.end, kKeyBlock, [&](int32_t begin, int32_t end) {
      Block const keys = block(begin, end);
      for (int t = 0; t < num_tiles_; ++t) {
        GradTile<E> const& tile = work_.tiles[t];
        int32_t const first = smaller(end, larger(begin, tile.begin / kKeyStep * kKeyStep));
        int32_t const last = larger(first, smaller(end, tile.end));
        if (first < last) meet(t, first, last, keys);
        clear_weights(t, 0, first - begin);
        clear_weights(t, last - begin, end - begin);
      }
      add_key_grads(begin, end, {0, chunk_.count});
    });
  }

  // What the tiles list. A tile takes neighbours among its blocks of a group in one step.
  void visit_lists() {
    ChunkLists<E, Order::kDown> const& lists = work_.lists;
    lists.for_runs(params_.block_mask, [&](int32_t group, BlockRun run) {
      ColRange const cols = Base::keys_of(group, run);
      turn_.leave(cols.end);
      Block const keys = block(cols.begin, cols.end);
      TileRange const tiles = lists.tiles_with(group, run);
      for (int t = tiles.begin; t < tiles.end; ++t) {
        uint32_t const blocks = lists.blocks_of(t, group) & run.bits();
        for_block_runs<Order::kDown>(blocks, [&](BlockRun part) {
          ColRange const seen = Base::keys_of(group, part);
          lists.tiles[t].read(params_.block_mask, work_.tiles[t], part, Base::seen_);
          meet(t, seen.begin, seen.end, keys);
        });
        for_block_runs<Order::kDown>(run.bits() & ~blocks, [&](BlockRun gap) {
          ColRange const unseen = Base::keys_of(group, gap);
          clear_weights(t, unseen.begin - cols.begin, unseen.end - cols.begin);
        });
      }
      add_key_grads(cols.begin, cols.end,
                    {tiles.begin * kCapacity, smaller(chunk_.count, tiles.end * kCapacity)});
    });
  }

  WeightBlock<E> weights_of(int tile) const {
    return workspace_.weights.at_query(tile * kCapacity);
  }

  // Of rows [first, last) of the block.
  void clear_weights(int tile, int first, int last) const {
    WeightBlock<E> const weights = weights_of(tile);
    size_t const bytes = work_.tiles[tile].vectors * kSize / E::kDepth * sizeof(Operand);
    for (int row = first; row < last; ++row) {
      __builtin_memset(weights.probs + row * weights.stride, 0, bytes);
      __builtin_memset(weights.grad_scores + row * weights.stride, 0, bytes);
    }
  }

  // Keys [begin, end) of the block against a tile.
  void meet(int index, int32_t begin, int32_t end, Block const& block) {
    GradTile<E>& tile = work_.tiles[index];
    int64_t const skipped = begin - block.begin;
    with_vectors(tile.vectors, [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
      step<kVectors>(tile, begin, end, block.keys.after_keys(skipped),
                     block.values.after_keys(skipped), block.key_pairs.after_values(skipped),
                     weights_of(index).at_key(skipped));
    });
  }

  template <int kVectors>
  void step(GradTile<E>& tile, int32_t begin, int32_t end, Rows keys, Rows values, Rows key_pairs,
            WeightBlock<E> const& weights) {
    constexpr int kWidth = kVectors * kSize;
    ScoreBlock<Real> const& scores = work_.scores;
    int const num_keys = end - begin;

    // Scores = K Q^T, dP = V dO^T
    Base::template score_keys<kVectors>(tile, begin, end, keys);
    Base::template multiply_grads<kVectors>(tile, values, num_keys);

    // P = exp(scores - lse), dS = P (dP - delta)
    Base::template mark_kept_keys<kVectors>(tile, begin, num_keys);
    if (num_keys % 2 != 0) pad_scores(num_keys * kWidth, kWidth);
    differentiate_as_needed<kVectors>(num_keys, tile, weights);

    // dQ += K^T dS
    Operand const* const grad_scores = reinterpret_cast<Operand const*>(scores.scores);
    multiply_values<Products, kVectors>(key_pairs.data, key_pairs.stride,
                                        (num_keys + E::kDepth - 1) / E::kDepth, grad_scores,
                                        params_.head_dim, workspace_.ones, tile.grad_q);
  }

  template <int kVectors>
  void differentiate_as_needed(int num_keys, GradTile<E> const& tile,
                               WeightBlock<E> const& weights) const {
    auto run = [&]<bool kModified, bool kFar>() {
      differentiate<E, kVectors, kModified, kFar>(rule_.scale, Base::keep_factor(), num_keys, tile,
                                                  work_.scores, weights);
    };
    if (kAlwaysFar || tile.far) return run.template operator()<true, true>();
    if constexpr (!kAlwaysFar) {
      bool const modified = Base::drops() || rule_.scales.has_softcap;
      modified ? run.template operator()<true, false>() : run.template operator()<false, false>();
    }
  }

  // A row of scores whose probabilities are zero.
  void pad_scores(int first, int width) const {
    for (int i = first; i < first + width; ++i) {
      work_.scores.scores[i] = -Real(__builtin_inf());
      work_.scores.grad_probs[i] = 0;
      if (rule_.scales.has_softcap) work_.scores.softcap_slopes[i] = 0;
    }
  }

  // dV += P^T dO, dK += dS^T Q, of `queries` of the chunk; in turn with the other chunks.
  void add_key_grads(int32_t begin, int32_t end, RowRange queries) {
    turn_.wait_for(begin);
    LaneWindow const window{chunk_, params_.window, group_, Base::diagonal_, queries};
    add_products(workspace_.weights.probs, workspace_.grad_out, window, begin, end, sums_.grad_v,
                 sums_.stride_v);
    add_products(workspace_.weights.grad_scores, workspace_.queries, window, begin, end,
                 sums_.grad_k, sums_.stride_k);
    turn_.leave(begin);
  }

  // grads[key] += sum over queries of weights[key][query] rows[query].
  void add_products(Operand const* weights, QueryPanels<E> const& rows, LaneWindow const& window,
                    int32_t begin, int32_t end, Real* grads, int64_t stride) const {
    for (int index = 0; index < rows.num_panels(); ++index) {
      Real* const to = grads + begin * stride + index * QueryPanels<E>::kPanelDims;
      with_vectors(rows.panel_vectors(index), [&]<int kVectors>() FA2_CPU_INLINE_LAMBDA {
        multiply_queries<Products, kVectors>(weights, workspace_.weights.stride, window, begin,
                                             end - begin, rows.panel(index), to, stride);
      });
    }
  }

  void finish_tiles() const {
    for (int t = 0; t < num_tiles_; ++t) finish_tile(work_.tiles[t], t);
  }

  void finish_tile(GradTile<E> const& tile, int index) const {
    if (grads_.accumulates) return add_tile(tile, index);
    Query query = Base::first_query(index);
    for (int n = 0; n < tile.vectors; ++n) {
      int const count = smaller(kSize, tile.num_queries - n * kSize);
      Storage* rows[kSize];
      for (int i = 0; i < count; ++i, query = Base::next(query)) {
        rows[i] = Base::row_ptr(grads_.grad_q, query);
      }
      unpack_outputs<E>(rows, count, tile.grad_q + n * kSize, tile.vectors * kSize,
                        broadcast(Real(params_.softmax_scale)), params_.head_dim);
    }
    query = Base::first_query(index);
    for (int i = 0; i < tile.num_queries; ++i, query = Base::next(query)) {
      if (!Base::is_empty(query)) continue;
      __builtin_memset(Base::row_ptr(grads_.grad_q, query), 0, params_.head_dim * sizeof(Storage));
    }
  }

  void add_tile(GradTile<E> const& tile, int index) const {
    Real unused[kMaxHeadDim] = {};  // what empty rows would add
    Real there[kSize];
    for (Real& factor : there) factor = 1;
    Query query = Base::first_query(index);
    for (int n = 0; n < tile.vectors; ++n) {
      int const count = smaller(kSize, tile.num_queries - n * kSize);
      Real* rows[kSize];
      for (int i = 0; i < count; ++i, query = Base::next(query)) {
        rows[i] =
            Base::is_empty(query) ? unused : Base::template row_of<Real>(grads_.grad_q, query);
      }
      add_outputs<Real>(rows, count, tile.grad_q + n * kSize, tile.vectors * kSize,
                        broadcast(Real(params_.softmax_scale)), there, params_.head_dim);
    }
  }

  BwdParams const& grads_;
  ColRange const keys_;
  Turn& turn_;
  SplitTurn* const split_;
  KeyGradSums<E> const sums_;
  double* const sink_sums_;
  GradWorkspace<E> workspace_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

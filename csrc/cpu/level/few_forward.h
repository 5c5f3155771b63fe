#pragma once

// Attention of a handful of queries: for each block of keys, scores = Q K^T, online softmax,
// out += P V.

#include "cpu/level/few_products.h"
#include "cpu/level/few_softmax.h"
#include "cpu/level/key_rows.h"
#include "cpu/level/row_results.h"
#include "cpu/processor.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Queries of all heads that are worked through together, and bytes of a row of K that they read:
// a page, the unit of prefetching in hardware.
inline constexpr int kMostTogether = 64;
inline constexpr int kRowBytes = 4096;

// So many bytes are fetched ahead, but at least and at most so many rows.
inline constexpr int kBytesAhead = 8192;
inline constexpr int kLeastAhead = kLongStep;
inline constexpr int kMostAhead = 64;

// Scratch, carved from one allocation.
template <class E>
struct FewWorkspace {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  using Storage = typename E::Storage;

  QueryRows<Operand> queries;
  QueryRows<Real> scores;  // probabilities take their place
  QueryRows<Real> sums;    // of a block
  QueryRows<Real> out;
  Storage const** rows;          // of K and V of a block, and of what follows
  float* key_factors = nullptr;  // [head][kKeyBlock], of a cache of 8 bits
  float* value_factors = nullptr;
  size_t bytes;

  FewWorkspace(void* memory, HeadDims const& dims, int num_queries) {
    Carver carver(memory);
    auto take = [&]<class T>(QueryRows<T>& rows, int stride) {
      rows = {carver.take<T>(kMostTogether * stride), stride, num_queries};
    };
    take(queries, round_up((dims.qk + E::kDepth - 1) / E::kDepth, kLanes<Operand>));
    take(scores, kKeyBlock);
    take(sums, round_up(dims.v, kLanes<Real>));
    take(out, round_up(dims.v, kLanes<Real>));
    rows = carver.take<Storage const*>(2 * kKeyBlock + kMostAhead);
    if constexpr (kQuantised<E>) {
      key_factors = carver.take<float>(kMostTogether * kKeyBlock);
      value_factors = carver.take<float>(kMostTogether * kKeyBlock);
    }
    bytes = carver.bytes();
  }
};

template <class E>
class FewForward : RowResults<E> {
  using Base = RowResults<E>;
  using Base::chunk_, Base::group_, Base::params_, Base::rule_;
  using Base::kSize;
  using typename Base::Operand;
  using typename Base::Query;
  using typename Base::Real;
  using typename Base::Storage;

 public:
  // Whether a sequence goes this way: a property of its own, or of the one that it is a part of,
  // and not of how it is cut into chunks, on which no result may depend.
  static bool takes(FwdParams const& params, SeqInfo const& q_seq, SeqInfo const& k_seq) {
    int32_t const seqlen_q = whole_seqlen_q(params, q_seq);
    int32_t const seqlen_k = whole_seqlen_k(params, k_seq);
    bool const listed = params.block_mask.row_offsets != nullptr;
    if (params.dropout.drop_prob > 0 || listed) return false;
    // A tile spends less on each query and, with lanes enough in use, is as fast on keys that lie
    // one after the other.
    int const most = seqlen_k < kKeyBlock             ? kSize / 4
                     : whole_num_heads_kv(params) > 1 ? kSize
                                                      : kSize * 3 / 4;
    return int64_t(seqlen_q) * params.group() <= most;
  }

  // KV heads that are best worked through together: those whose keys share a page.
  static int32_t heads_together(FwdParams const& params, int32_t seqlen_q) {
    int const head_bytes = larger(params.head_dim, params.head_dim_v) * int(sizeof(Storage));
    bool const adjacent =
        params.k.head_stride == params.head_dim && params.v.head_stride == params.head_dim_v;
    if (!adjacent || seqlen_q == 0) return 1;
    int const heads = smaller(kRowBytes / head_bytes, kMostTogether / (seqlen_q * params.group()));
    return larger(1, smaller(heads, params.num_heads_kv));
  }

  FewForward(FwdParams const& params, ForwardChunk const& chunk, void* memory)
      : Base(params, chunk.queries),
        num_heads_(chunk.num_heads),
        num_rows_(chunk.num_heads * chunk_.count),
        keys_{chunk.key_begin, chunk.key_end},
        turn_keys_(decode_turn_keys(active_processor())),
        partial_(chunk.partial),
        workspace_(memory, head_dims(params), chunk_.count) {
    int const widest = larger(params.head_dim, params.head_dim_v);
    int const row_bytes = num_heads_ * widest * int(sizeof(Storage));
    rows_ahead_ = larger(kLeastAhead, smaller(kMostAhead, kBytesAhead / row_bytes));
  }

  void run() {
    int32_t begin = keys_.end;
    int32_t end = keys_.begin;
    for_queries([&](int i, Query query) {
      ColRange const cols = Base::cols_of(query);
      visible_[i] = {larger(cols.begin, keys_.begin), smaller(cols.end, keys_.end)};
      if (visible_[i].begin < visible_[i].end) {
        begin = smaller(begin, visible_[i].begin);
        end = larger(end, visible_[i].end);
      }
      modifiers_[i] = modifiers_of(query);
      state_[i].base = {};
      state_[i].sum = Vec<Real>{};
    });
    pack_queries();
    clear(workspace_.out);
    for_blocks(begin / kKeyStep * kKeyStep, end, kKeyBlock,
               [&](int32_t first, int32_t last) { step(first, last, end); });
    finish();
  }

 private:
  // Calls step(index, query) for the queries of every head.
  template <class Step>
  void for_queries(Step const& step) const {
    int index = 0;
    for (int head = 0; head < num_heads_; ++head) {
      Query query = Base::first_query(0);
      for (int i = 0; i < chunk_.count; ++i, query = Base::next(query)) {
        step(index++, Query{query.row, head * group_ + query.in_group});
      }
    }
  }

  void pack_queries() {
    with_query_element<E>(params_.dtype, [&]<class Q>() FA2_CPU_INLINE_LAMBDA {
      typename Q::Storage const* rows[kMostTogether];
      for_queries(
          [&](int i, Query query) { rows[i] = Base::template row_ptr<Q>(params_.q, query); });
      pack_query_rows<E, Q>(workspace_.queries.data, workspace_.queries.stride, rows, num_rows_,
                            params_.head_dim);
    });
  }

  FewModifiers<Real> modifiers_of(Query query) const {
    FewModifiers<Real> of = {Base::diagonal_of(query), Base::slope_of(query), {}};
    for (int i = 0; i < rule_.num_biases; ++i) {
      of.bias_offset[i] =
          bias_offset(rule_.biases[i], chunk_.batch, Base::head_of(query), query.row);
    }
    return of;
  }

  void clear(QueryRows<Real> const& rows) const {
    __builtin_memset(rows.data, 0, num_rows_ * rows.stride * sizeof(Real));
  }

  void step(int32_t begin, int32_t end, int32_t end_of_all) {
    int const num_keys = end - begin;
    find_block(begin, end, end_of_all);
    auto block = [&](int first, TensorRef const& tensor, int head_dim) {
      return KeyBlock<Storage>{workspace_.rows + first, num_keys, rows_ahead_, num_heads_,
                               tensor.head_stride,      head_dim, turn_keys_};
    };
    FewProducts<E>::multiply_keys(block(0, params_.k, params_.head_dim), workspace_.queries,
                                  workspace_.scores);
    if constexpr (kQuantised<E>) find_factors(begin, end);
    Real rescale[kMostTogether];
    for (int i = 0; i < num_rows_; ++i) rescale[i] = softmax(i, begin, end);
    clear(workspace_.sums);
    auto const* const probs = reinterpret_cast<Operand*>(workspace_.scores.data);
    int const first_value = round_up(num_keys, FewProducts<E>::kKeyMultiple);
    FewProducts<E>::multiply_values(block(first_value, params_.v, params_.head_dim_v),
                                    {const_cast<Operand*>(probs), kKeyBlock, chunk_.count},
                                    workspace_.sums);
    int const stride = workspace_.out.stride;
    for (int i = 0; i < num_rows_; ++i) {
      for (int d = i * stride; d < (i + 1) * stride; d += kSize) {
        store(workspace_.out.data + d, load<Real>(workspace_.out.data + d) * rescale[i] +
                                           load<Real>(workspace_.sums.data + d));
      }
    }
  }

  Real softmax(int i, int32_t begin, int32_t end) {
    int const num_keys = end - begin;
    Real* const scores = workspace_.scores.data + i * kKeyBlock;
    int const factors = i / chunk_.count * kKeyBlock;
    if constexpr (kQuantised<E>) multiply_row(scores, workspace_.key_factors + factors, num_keys);
    for (int j = num_keys; j < round_up(num_keys, kExpStep<Real>); ++j) {
      scores[j] = -Real(__builtin_inf());
    }
    if (rule_.modifies || begin < visible_[i].begin || end > visible_[i].end) {
      adjust_row<Real>(rule_, visible_[i], modifiers_[i], begin, num_keys, scores);
    }
    Real const rescale = exponentiate_row<E>(rule_.scale, num_keys, state_[i], scores);
    if constexpr (kQuantised<E>) multiply_row(scores, workspace_.value_factors + factors, num_keys);
    return rescale;
  }

  void find_factors(int32_t begin, int32_t end) const {
    QuantisedKV const& from = params_.quantised;
    auto read = [&](float* to, Scales const& scales) {
      read_factors<E>(to, scales, params_.pages, chunk_, num_heads_, begin, end);
    };
    read(workspace_.key_factors, from.k);
    read(workspace_.value_factors, from.v);
  }

  // The keys of a block, padded to whole vectors, then its values, then the keys of the next.
  void find_block(int32_t begin, int32_t end, int32_t end_of_all) {
    int const num_keys = end - begin;
    Storage const** rows = workspace_.rows;
    find_rows(rows, params_.k, params_.pages, chunk_, begin, end);
    rows += num_keys;
    for (int i = num_keys; i % FewProducts<E>::kKeyMultiple != 0; ++i, ++rows) *rows = rows[-1];
    find_rows(rows, params_.v, params_.pages, chunk_, begin, end);
    rows += num_keys;
    int const next = smaller(rows_ahead_, end_of_all - end);
    find_rows(rows, params_.k, params_.pages, chunk_, end, end + next);
    rows += next;
    for (int i = next; i < rows_ahead_; ++i, ++rows) *rows = rows[-1];
  }

  void finish() const {
    int const head_dim_v = params_.head_dim_v;
    for_queries([&](int i, Query query) {
      Real* const out = workspace_.out.data + i * workspace_.out.stride;
      join_row<E>(out, head_dim_v);
      Real const sum = reduce_lanes<Real>(state_[i].sum, [](Real a, Real b) { return a + b; });
      RowState<Real> const row = {state_[i].base, sum};
      if (partial_ != nullptr) {
        SplitResult<E> const result(partial_, i, head_dim_v);
        *result.state = row;
        __builtin_memcpy(result.out, out, workspace_.out.stride * sizeof(Real));
        return;
      }
      Base::write_row(row, query, [&](int d) { return load<Real>(out + d); });
    });
  }

  int const num_heads_;
  int const num_rows_;  // queries of all heads
  ColRange const keys_;
  int const turn_keys_;
  void* const partial_;
  FewWorkspace<E> const workspace_;
  int rows_ahead_;
  ColRange visible_[kMostTogether];
  FewModifiers<Real> modifiers_[kMostTogether];
  FewState<E> state_[kMostTogether];
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL

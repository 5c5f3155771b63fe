#pragma once

// Merges the parts that the splits of a row left (core/online_softmax.h has the rule).

#include <cute/tensor.hpp>

#include "core/online_softmax.h"
#include "core/seq_info.h"
#include "sm80/cache_args.h"
#include "tile/fragments.h"
#include "tile/softmax.h"

namespace fa2::sm80 {

// One CTA for each query of each head. A thread holds 4 columns of every kGroups-th split.
template <class Element>
struct CombineKernel {
  using Args = CombineArgs;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kWarps = kThreads / 32;
  static_assert(kMaxSplits <= kThreads, "each thread weighs one split");

  struct Smem {
    float4 sums[kThreads];
    float weights[kThreads];
    RowState states[kWarps];
  };
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(CombineArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    FwdParams const& p = args.problem;
    int32_t const query = blockIdx.x % p.seqs_q.max_seqlen;
    int32_t const pair = blockIdx.x / p.seqs_q.max_seqlen;
    int32_t const batch = pair / p.num_heads, head = pair % p.num_heads;
    SeqInfo const q = seq_info(p.seqs_q, batch);
    if (query >= q.length) return;
    int64_t const index = lse_index(p, batch, q.first_row, head) + query;

    RowState state = weigh_splits(args.partials, index, smem);
    float const base = state.base;
    if (p.sink != nullptr) state = merge_sink(state, p.sink[head], DeviceExp2{});
    float const scale = row_scale(state) * exp2_approx(base - state.base);

    add_splits(args.partials, index, p.head_dim, smem);
    int const num_columns = p.head_dim / 4, column = threadIdx.x;
    if (column < num_columns) {
      float4 sum = smem.sums[column];
      for (int group = 1; group < kThreads / num_columns; ++group) {
        sum = add(sum, smem.sums[group * num_columns + column]);
      }
      Element* const to = head_ptr<Element>(p.out, batch, q.first_row, head) +
                          query * p.out.row_stride + column * 4;
      *reinterpret_cast<uint2*>(to) = make_uint2(pack<Element>(sum.x * scale, sum.y * scale),
                                                 pack<Element>(sum.z * scale, sum.w * scale));
    }
    if (threadIdx.x == 0) p.lse[index] = row_lse(state);
  }

 private:
  // The state of the whole row; what the output of each split counts in it goes to smem.weights.
  CUTE_DEVICE static RowState weigh_splits(Partials const& partials, int64_t index, Smem& smem) {
    int const split = threadIdx.x;
    float lse = -INFINITY;
    if (split < partials.num_splits) lse = partials.lse[split * partials.rows + index];
    RowState const own = finished_row(lse);
    RowState state = own;
    CUTE_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
      RowState const other{__shfl_xor_sync(0xffffffffu, state.base, mask),
                           __shfl_xor_sync(0xffffffffu, state.sum, mask)};
      state = merge(state, other, DeviceExp2{});
    }
    if (threadIdx.x % 32 == 0) smem.states[threadIdx.x / 32] = state;
    __syncthreads();
    state = smem.states[0];
    CUTE_UNROLL
    for (int w = 1; w < kWarps; ++w) state = merge(state, smem.states[w], DeviceExp2{});
    smem.weights[split] = own.sum * exp2_approx(own.base - state.base);
    __syncthreads();
    return state;
  }

  // Threads that lie num_columns apart leave sums of the same columns.
  CUTE_DEVICE static void add_splits(Partials const& partials, int64_t index, int head_dim,
                                     Smem& smem) {
    int const num_columns = head_dim / 4, groups = kThreads / num_columns;
    int const column = threadIdx.x % num_columns, group = threadIdx.x / num_columns;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    if (group < groups) {
      CUTE_NO_UNROLL
      for (int split = group; split < partials.num_splits; split += groups) {
        float const weight = smem.weights[split];
        if (weight == 0.f) continue;  // it has no output
        int64_t const row = split * partials.rows + index;
        float4 const x = reinterpret_cast<float4 const*>(partials.out + row * head_dim)[column];
        sum = add(sum, make_float4(x.x * weight, x.y * weight, x.z * weight, x.w * weight));
      }
    }
    smem.sums[threadIdx.x] = sum;
    __syncthreads();
  }

  CUTE_DEVICE static float4 add(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
  }
};

}  // namespace fa2::sm80

#pragma once

// Adds up the splits of a row that CTAs have stored.

#include <cute/tensor.hpp>

#include "sm80/row_block.h"
#include "sm80/split/sum.h"
#include "tile/fragments.h"

namespace fa2::sm80 {

// One CTA for each query of each head.
template <class Element>
struct CombineKernel {
  using Args = CombineArgs;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLoadsInFlight = 8;
  static_assert(kMaxSplits <= kThreads, "each thread looks at one slot");

  struct Smem {
    SumFactors factors[kMaxSplits];
    float sums[kMaxSplits];  // of the splits' states
    float bases[kMaxSplits];
    float warp_bases[kWarps];
  };
  static constexpr int kSmemBytes = sizeof(Smem);

  // A query of one head, and where its splits are.
  struct Source {
    int32_t slots;
    int64_t first;   // index of slot 0 in Partials
    int64_t stride;  // to the next slot
  };

  CUTE_DEVICE void operator()(CombineArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    FwdParams const& p = args.problem;
    int32_t const query = blockIdx.x % args.queries;
    int32_t const pair = blockIdx.x / args.queries;
    int32_t const batch = pair / p.num_heads, head = pair % p.num_heads;
    SeqInfo const q = seq_info(p.seqs_q, batch);
    if (query >= q.length) return;
    Source const source = source_of(args, q, batch, head, query);
    if (source.slots <= 1) return;  // the split kernel has finished the row

    RowState const row = read_states(args.partials, source, smem);
    FinishedRow const finished = finish_row(row, p.sink != nullptr ? p.sink + head : nullptr);
    CUTE_NO_UNROLL
    for (int col = 2 * int(threadIdx.x); col < p.head_dim_v; col += 2 * kThreads) {
      float2 const sum = sum_outputs(args.partials.out + col, source, p.head_dim_v, smem);
      Element* const to =
          head_ptr<Element>(p.out, batch, q.first_row, head) + query * p.out.row_stride + col;
      *reinterpret_cast<uint32_t*>(to) =
          pack<Element>(sum.x * finished.scale, sum.y * finished.scale);
    }
    if (threadIdx.x == 0) p.lse[lse_index(p, batch, q.first_row, head) + query] = finished.lse;
  }

 private:
  CUTE_DEVICE static Source source_of(CombineArgs const& args, SeqInfo const& q, int32_t batch,
                                      int32_t head, int32_t query) {
    FwdParams const& p = args.problem;
    SplitSchedule const& schedule = args.schedule;
    SeqInfo const k = seq_info(p.seqs_k, batch);
    int32_t const blocks = row_blocks(schedule, q, k);
    if (blocks == 0) return {0, 0, 0};
    int32_t const group = schedule.rule.group;
    int32_t const row = query * group + head % group;
    RowBlock const block = row_block(schedule, q, k, blocks, row / schedule.block_m);
    Partials const& partials = args.partials;
    int64_t const at = partials.first_row(batch, q.first_row, group) + row;
    return {block.sharing.stored(), partials.index(0, p.num_heads_kv, head / group, at),
            partials.rows * p.num_heads_kv};
  }

  // The state of the whole row; the factors of each sum go to smem.factors.
  CUTE_DEVICE static RowState read_states(Partials const& partials, Source const& source,
                                          Smem& smem) {
    int const slot = threadIdx.x, lane = slot % 32, warp = slot / 32;
    bool const exists = slot < source.slots;
    RowState const own =
        exists ? partials.states[source.first + slot * source.stride] : empty_row();
    // The base of the sum up to each slot is the largest one so far.
    float base = own.base;
    CUTE_UNROLL
    for (int distance = 1; distance < 32; distance *= 2) {
      float const before = __shfl_up_sync(0xffffffffu, base, distance);
      if (lane >= distance) base = fmaxf(base, before);
    }
    if (lane == 31) smem.warp_bases[warp] = base;
    smem.sums[slot] = own.sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) base = fmaxf(base, smem.warp_bases[w]);
    smem.bases[slot] = base;
    __syncthreads();
    float const before = slot == 0 ? float(kEmptyBase) : smem.bases[slot - 1];
    smem.factors[slot] = sum_factors(before, own.base, base);
    __syncthreads();

    float sum = 0.f;
    CUTE_NO_UNROLL
    for (int i = 0; i < source.slots; ++i) sum = added(sum, smem.sums[i], smem.factors[i]);
    return {smem.bases[source.slots - 1], sum};
  }

  // `out` is at this thread's two columns.
  CUTE_DEVICE static float2 sum_outputs(float const* out, Source const& source, int head_dim_v,
                                        Smem const& smem) {
    float2 sum = make_float2(0.f, 0.f);
    CUTE_NO_UNROLL
    for (int first = 0; first < source.slots; first += kLoadsInFlight) {
      float2 loaded[kLoadsInFlight];
      CUTE_UNROLL
      for (int i = 0; i < kLoadsInFlight; ++i) {
        if (first + i >= source.slots) continue;
        int64_t const at = source.first + (first + i) * source.stride;
        loaded[i] = *reinterpret_cast<float2 const*>(out + at * head_dim_v);
      }
      CUTE_UNROLL
      for (int i = 0; i < kLoadsInFlight; ++i) {
        if (first + i >= source.slots) continue;
        SumFactors const factors = smem.factors[first + i];
        sum = make_float2(added(sum.x, loaded[i].x, factors), added(sum.y, loaded[i].y, factors));
      }
    }
    return sum;
  }
};

}  // namespace fa2::sm80
